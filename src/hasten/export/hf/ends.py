"""A model's two ends, embedding and head: whether they share a weight, and what the configuration says of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from hasten.export.hf.adapter_file import AdapterFile

_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
_HEADS = ("lm_head.weight", "embed_out.weight")
_TIED = "tie_word_embeddings"
_VOCABULARY = "vocab_size"


def ends_of(names: Mapping[str, Any]) -> tuple[str | None, str]:
    """The names of embedding and head; the head's is the usual one where a checkpoint has none."""
    embedding = next((name for name in names if name.endswith(_EMBEDDINGS)), None)
    head = next((name for name in names if name.endswith(_HEADS)), _HEADS[0])
    return embedding, head


def vocabulary_tensors(file: AdapterFile) -> dict[str, int]:
    """The tensors of an adapter that go by the tokens, by the file's names, and for how many tokens they are.

    Whole tables come first, then factors of embedding and head. Single rows say nothing of how many there are.
    """
    ends = (*_EMBEDDINGS, *_HEADS)
    found = {tensor: file.shapes[tensor][0] for weight, tensor in file.tables.items() if weight.endswith(ends)}
    for pair in file.factors:
        if f"{pair.module}.weight".endswith(ends):
            tensor, side = (pair.a, 1) if pair.embedding else (pair.b, 0)
            found[tensor] = file.shapes[tensor][side]
    return found


def vocabulary_rows(file: AdapterFile) -> int | None:
    """How many rows the vocabulary had where an adapter was trained; None where its tensors do not tell.

    That many rows a base has before peft can load the adapter on it. The merged model may have more: of a base whose
    table was cut to its tokens, it keeps the rest.
    """
    return next(iter(vocabulary_tensors(file).values()), None)


def is_tied(config: Mapping[str, Any], names: Mapping[str, Any]) -> bool:
    """Whether both ends are one weight. Where the configuration does not say, a checkpoint without a head does."""
    said = [part[_TIED] for part in _parts(config) if _TIED in part]
    return bool(said[0]) if said else ends_of(names)[1] not in names


def untied(config: dict[str, Any]) -> dict[str, Any]:
    """A copy of a configuration whose ends are two weights."""
    made = copy.deepcopy(config)
    made[_TIED] = False
    for part in _parts(made)[1:]:
        if _TIED in part:
            part[_TIED] = False
    return made


def with_vocabulary(config: dict[str, Any], rows: int) -> dict[str, Any]:
    """A copy of a configuration with so many rows in its embedding."""
    made = copy.deepcopy(config)
    found = [part for part in _parts(made) if _VOCABULARY in part] or [made]
    for part in found:
        part[_VOCABULARY] = rows
    return made


def _parts(config: Any) -> list[Any]:
    """The configuration, and the part about text where it has one."""
    text = config.get("text_config")
    return [config, text] if isinstance(text, dict) else [config]
