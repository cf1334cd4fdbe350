"""A whole-job case: the model's folder and the rows' file that every arm starts from."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from model_shapes import SHAPES
from step_case import LOSS_TOLERANCE, NORM_TOLERANCE, run_arms

PROMPT = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n{output}"
PROMPT_ALONE = "### Instruction:\n{instruction}\n\n### Response:\n{output}"
VOCABULARY = 49152
"""At least; tiny shapes have fewer tokens than the tokenizer."""


def run_jobs(
    arms: list[str], *, rows: str, model: str, tokenizer: str, shape: str, spec: dict[str, Any], matched: bool
) -> dict[str, Any]:
    """All arms over the same rows.

    Args:
        arms: names.
        rows: a JSON file of instruction rows.
        model: a folder to start from; written first, with random weights of that shape, if it is not there. Empty:
            a temporary one.
        tokenizer: a folder with a tokenizer for it; empty: the embedded model's.
        shape: the model's.
        spec: batch, accumulation, length, packed, steps, skip, repeat; `of_arm`: what is different for an arm.
        matched: whether each step of all arms reads the same rows, so that their first losses and gradients agree.
    """
    with TemporaryDirectory() as folder:
        model, file = model or f"{folder}/model", f"{folder}/rows.jsonl"
        begun = time.perf_counter()
        if not Path(model).exists():
            make_model(model, shape, tokenizer or embedded_tokenizer())
        count = write_rows(rows, file, spec["repeat"])
        print(f"model and {count} rows written in {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
        # Other rows in the first step: random weights give nearly the same loss on any text.
        tolerances = {"loss_first": LOSS_TOLERANCE if matched else 2.0**-5}
        if matched:
            tolerances["grad_norm"] = NORM_TOLERANCE
        given = {**spec, "shape": shape}
        return run_arms(
            arms, given, program="job_arm.py", tolerances=tolerances, private={"model": model, "rows": file}
        )


def make_model(folder: str, shape: str, tokenizer: str) -> None:
    """A LLaMA of that shape with random weights, in bfloat16, with the tokenizer beside it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = dict(SHAPES[shape])
    sizes["vocab_size"] = max(sizes["vocab_size"], VOCABULARY)
    torch.manual_seed(0)
    config = LlamaConfig(**sizes, max_position_embeddings=8192, dtype=torch.bfloat16, eos_token_id=2, bos_token_id=1)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the arms' processes need the memory
    copy_tokenizer(tokenizer, folder)


def copy_tokenizer(source: str, target: str) -> None:
    """The tokenizer's files of one folder into another."""
    for file in Path(source).iterdir():
        if file.name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
            shutil.copy(file, target)


def embedded_tokenizer() -> str:
    """The embedded model's folder."""
    from hasten.loading.model import LoadOptions, find, local_folder

    options = LoadOptions()
    return local_folder(find("demo", options), options)


def write_rows(source: str, target: str, repeat: int) -> int:
    """Instruction rows as texts, one JSON object per line."""
    rows = json.loads(Path(source).read_text(encoding="utf-8")) * repeat
    with Path(target).open("w", encoding="utf-8") as file:
        for row in rows:
            text = (PROMPT if row.get("input") else PROMPT_ALONE).format_map(row)
            file.write(json.dumps({"text": text}) + "\n")
    return len(rows)
