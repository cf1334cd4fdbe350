"""config.json and generation_config.json of an exported model: as the base has them, but for what changed."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hasten.data.formats import RowProblem
from hasten.data.templates import ChatEncoder
from hasten.errors import ConfigError, did_you_mean
from hasten.loading.source import read_json

GENERATION = "generation_config.json"
DTYPES = ("bfloat16", "float16", "float32")
_KEYS = ("dtype", "torch_dtype")
_AROUND = ("GenerationConfig is invalid", "If you're using a pretrained model")
"""Lines of transformers' errors that name no fault."""
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def chosen_dtype(config: dict[str, Any], asked: str | None) -> str:
    """The dtype that weights are written in: what was asked for, or 16 bits, float16 where the base has that.

    Raises:
        ConfigError: another dtype than those.
    """
    if asked is not None:
        name = str(asked).removeprefix("torch.")
        if name not in DTYPES:
            remedy = did_you_mean(name, DTYPES, "Leave it out for 16 bits.")
            raise ConfigError("dtype", repr(asked), f"Allowed: {', '.join(DTYPES)}.", remedy)
        return name
    return "float16" if _dtype_of(config) == "float16" else "bfloat16"


def with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """A copy of a configuration that says a dtype, in the words that it used before."""
    made = copy.deepcopy(config)
    parts = [made, *(part for part in made.values() if isinstance(part, dict))]
    found = [(part, key) for part in parts for key in _KEYS if key in part]
    for part, key in found or [(made, "dtype")]:
        part[key] = dtype
    return made


def generation_settings(base: Path, config: dict[str, Any], tokenizer: Any) -> tuple[dict[str, Any], list[str]]:
    """Valid generation settings that know every token that ends an answer.

    Sampling values without sampling (a common fault of published models) make transformers refuse to save; in the copy
    sampling is switched on, because whoever wrote a temperature wanted it used. Other faults stay, and are told.

    Args:
        base: a model's folder.
        config: the exported model's.
        tokenizer: a transformers tokenizer, or None.

    Returns:
        The settings, and what was changed.
    """
    if (base / GENERATION).is_file():
        made = read_json(base / GENERATION)
    else:
        made = {"_from_model_config": True} | {key: config[key] for key in _IDS if config.get(key) is not None}
    notes: list[str] = []
    if tokenizer is not None:
        ids = _end_ids(tokenizer, made.get("eos_token_id"))
        if ids != _listed(made.get("eos_token_id")):
            made["eos_token_id"] = ids[0] if len(ids) == 1 else ids
            notes.append(f"generation_config: an answer ends at each of {ids}")
    fault = _fault(made)
    if fault is None:
        return made, notes
    sampling = {**made, "do_sample": True}
    if not made.get("do_sample") and _fault(sampling) is None:
        said = "generation_config had sampling values without do_sample: the copy has do_sample=true"
        return sampling, [*notes, said]
    return made, [*notes, f"generation_config has a fault that is the base's, and stays: {fault}"]


def _fault(settings: dict[str, Any]) -> str | None:
    """Why transformers would not save generation settings; None: it does."""
    from transformers import GenerationConfig

    try:
        GenerationConfig(**settings).validate(strict=True)
    except (ValueError, TypeError) as cause:  # a value that is not allowed, or of another type
        lines = [line.removeprefix("- ") for line in str(cause).splitlines() if line.strip()]
        listed = [line for line in lines if not line.startswith(_AROUND)]
        return (listed or lines or [type(cause).__name__])[0][:200]
    return None


def _end_ids(tokenizer: Any, configured: Any) -> list[int]:
    known = _listed(configured)
    try:
        found = ChatEncoder(tokenizer).end_ids(SimpleNamespace(eos_token_id=configured))
    except RowProblem:  # a template with demands of its own; the tokenizer's end is certain
        found = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    return list(dict.fromkeys([*known, *found]))


def _listed(ids: Any) -> list[int]:
    return ids if isinstance(ids, list) else [] if ids is None else [ids]


def _dtype_of(config: dict[str, Any]) -> str | None:
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        for key in _KEYS:
            if part.get(key) is not None:
                return str(part[key]).removeprefix("torch.")
    return None
