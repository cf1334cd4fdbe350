"""llama.cpp on one file, as a program of its own: what it predicts after the beginnings of a text.

Run by its path, so that nothing but the binding is imported. It is asked on its input and answers on its output, each
one JSON object; what llama.cpp prints goes to the errors. A crash ends this program and no other.

    asked:    file, ids, lengths, top, threads, limit_s
    answers:  {"top": [[[id, log-probability], ...] of each length]}
              {"refused": text}   the file cannot be loaded
              {"error": text}     it was loaded, and did not answer
"""

from __future__ import annotations

import faulthandler
import json
import os
import secrets
import sys
from importlib import import_module
from typing import Any


def main() -> None:
    """Answer one question."""
    asked = json.load(sys.stdin)
    faulthandler.dump_traceback_later(asked["limit_s"], exit=True)  # whoever asked may be gone
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    json.dump(answer(asked), answers)
    answers.close()


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """What llama.cpp says."""
    xllamacpp: Any = import_module("xllamacpp")
    try:
        server = xllamacpp.Server(settings(xllamacpp, asked))
    except RuntimeError as cause:
        return {"refused": str(cause)}
    found: list[list[list[float]]] = []
    for length in asked["lengths"]:
        # Not sampled from: log-probabilities are those of all tokens, whatever a sampler would leave of them.
        body = {"prompt": asked["ids"][:length], "n_predict": 1, "logprobs": asked["top"], "cache_prompt": True}
        said: Any = server.handle_completions({**body, "temperature": 0.0, "post_sampling_probs": False})
        if "choices" not in said:
            return {"error": str(said.get("error", said))[:300]}
        top = said["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        found.append([[each["id"], each["logprob"]] for each in top])
    return {"top": found}


def settings(xllamacpp: Any, asked: dict[str, Any]) -> Any:
    """One text at a time on the CPU, its keys and values in float32: the file is asked about, not a cache."""
    made = xllamacpp.CommonParams()
    made.model.path = asked["file"]
    made.n_ctx, made.n_parallel, made.warmup = len(asked["ids"]) + 8, 1, False
    made.cpuparams.n_threads = made.cpuparams_batch.n_threads = asked["threads"]
    made.n_gpu_layers, made.no_op_offload, made.no_kv_offload, made.fit_params = 0, True, True, False
    made.cache_type_k = made.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    made.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    made.swa_full = True  # or each beginning is computed anew
    made.verbosity = 2  # warnings and errors: they say why a file is refused
    made.api_keys, made.ui = [secrets.token_hex()], False  # it opens a port, which nobody else is to use
    return made


if __name__ == "__main__":
    main()
