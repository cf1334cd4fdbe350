"""What kind of value each field of a GGUF that is read here has: checked once, so that readers need not ask.

A field of another kind is a damaged or wrongly written file. Fields that no table here names are not looked at.
Sizes have a bound above every model's: with larger ones, shapes that are made of them would overflow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hasten.errors import ModelError

_LARGEST_SIZE = 2**20
"""Of a width or a number of heads."""
_LARGEST_COUNT = 2**31 - 1
"""Of tokens and positions; ids are 32 bits wide."""


@dataclass(frozen=True)
class Kind:
    """A kind of value."""

    fits: Callable[[Any], bool]
    rule: str
    """In a message, behind "It is"."""


def _whole(least: int, most: int) -> Kind:
    return Kind(
        lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most,
        f"a whole number from {least:,} to {most:,}",
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _list_of(each: Callable[[Any], bool], name: str) -> Kind:
    return Kind(lambda value: isinstance(value, list) and all(map(each, value)), f"a list of {name}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_TEXT = Kind(_is_text, "a text")
_FLAG = Kind(lambda value: isinstance(value, bool) or value in (0, 1), "true or false")
_SIZE, _SIZE_OR_NONE = _whole(1, _LARGEST_SIZE), _whole(0, _LARGEST_SIZE)
_COUNT, _COUNT_OR_NONE = _whole(1, _LARGEST_COUNT), _whole(0, _LARGEST_COUNT)
_NUMBER = Kind(_is_number, "a number")
_POSITIVE = Kind(lambda value: _is_number(value) and 0 < value < 1e30, "a number above 0")
_NOT_NEGATIVE = Kind(lambda value: _is_number(value) and 0 <= value < 1e30, "a number of at least 0")
_LENGTH = Kind(lambda value: _is_token(value) and 2 <= value <= _LARGEST_COUNT, "a whole number of at least 2")

_GENERAL: Mapping[str, Kind] = MappingProxyType(
    {
        "general.architecture": _TEXT,
        "general.type": _TEXT,
        "general.sampling.temp": _NOT_NEGATIVE,
        "general.sampling.top_k": _whole(-1, _LARGEST_COUNT),
        "general.sampling.top_p": _NOT_NEGATIVE,
        "general.sampling.min_p": _NOT_NEGATIVE,
        "split.count": _whole(0, 99_999),
        "split.tensors.count": _COUNT_OR_NONE,
        "tokenizer.ggml.model": _TEXT,
        "tokenizer.ggml.pre": _TEXT,
        "tokenizer.ggml.tokens": _list_of(_is_text, "texts"),
        "tokenizer.ggml.merges": _list_of(_is_text, "texts"),
        "tokenizer.ggml.token_type": _list_of(_is_token, "whole numbers"),
        "tokenizer.ggml.scores": _list_of(_is_number, "numbers"),
        "tokenizer.ggml.add_bos_token": _FLAG,
        "tokenizer.ggml.add_eos_token": _FLAG,
        "tokenizer.ggml.add_space_prefix": _FLAG,
        "tokenizer.chat_template": _TEXT,
        **{
            f"tokenizer.ggml.{name}_token_id": _COUNT_OR_NONE
            for name in ("bos", "eos", "eot", "eom", "unknown", "padding", "seperator", "mask")
        },
    }
)
_OF_ARCHITECTURE: Mapping[str, Kind] = MappingProxyType(
    {
        "block_count": _SIZE,
        "context_length": _LENGTH,
        "embedding_length": _SIZE,
        "feed_forward_length": _SIZE,
        "vocab_size": _COUNT,
        "attention.head_count": _SIZE,
        "attention.head_count_kv": _SIZE_OR_NONE,
        "attention.key_length": _SIZE_OR_NONE,
        "attention.value_length": _SIZE,
        "attention.layer_norm_rms_epsilon": _NOT_NEGATIVE,
        "attention.causal": _FLAG,
        "attention.sliding_window": _COUNT_OR_NONE,
        "expert_count": _COUNT_OR_NONE,
        "expert_used_count": _COUNT_OR_NONE,
        "expert_feed_forward_length": _SIZE_OR_NONE,
        "expert_shared_feed_forward_length": _SIZE_OR_NONE,
        "rope.dimension_count": _SIZE_OR_NONE,
        "rope.freq_base": _POSITIVE,
        "rope.freq_base_swa": _POSITIVE,
        "rope.global.freq_base": _POSITIVE,
        "rope.local.freq_base": _POSITIVE,
        "rope.scale_linear": _NOT_NEGATIVE,
        "rope.scaling.type": _TEXT,
        "rope.scaling.factor": _NOT_NEGATIVE,
        "rope.scaling.original_context_length": _LENGTH,
        "rope.scaling.attn_factor": _NUMBER,
        "rope.scaling.yarn_ext_factor": _NUMBER,
        "rope.scaling.yarn_attn_factor": _NUMBER,
        "rope.scaling.yarn_beta_fast": _NUMBER,
        "rope.scaling.yarn_beta_slow": _NUMBER,
    }
)


def require_general(path: Path, fields: Mapping[str, Any]) -> None:
    """Fields that mean the same in every architecture.

    Args:
        path: the file, for the message.
        fields: its metadata.

    Raises:
        ModelError: one of them is of another kind.
    """
    for name, kind in _GENERAL.items():
        _require(path, fields, name, kind)


def require_of_architecture(path: Path, fields: Mapping[str, Any], arch: str) -> None:
    """Fields of an architecture that is converted here.

    Args:
        path: the file, for the message.
        fields: its metadata.
        arch: its architecture.

    Raises:
        ModelError: one of them is of another kind.
    """
    for name, kind in _OF_ARCHITECTURE.items():
        _require(path, fields, f"{arch}.{name}", kind)


def _require(path: Path, fields: Mapping[str, Any], name: str, kind: Kind) -> None:
    value = fields.get(name)
    if value is None or kind.fits(value):
        return
    raise ModelError(
        str(path),
        f"{name} = {_shown(kind, value)}",
        f"It is {kind.rule}.",
        "Convert the model again with a current converter, or use its Hugging Face folder.",
    )


def _shown(kind: Kind, value: Any) -> str:
    """A value for a message; of a long list, the first of its values that does not fit."""
    if isinstance(value, list) and kind.rule.startswith("a list"):
        number = next(place for place, each in enumerate(value) if not kind.fits([each]))
        return f"a list whose value {number} is {value[number]!r:.60}"
    return f"{value!r:.60}"
