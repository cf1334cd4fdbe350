"""Which modules the caller's words mean: names, ``"all-linear"`` or nothing, narrowed by the finetune_* flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hasten.errors import ConfigError
from hasten.families.base import family_of
from hasten.lora.targets import ALL_LINEAR, linear_names, resolve_targets

_ENDS = ("embed_tokens", "lm_head")
_ATTENTION = ("attn", "attention")
_MLP = ("mlp", "ffn", "feed_forward", "feedforward", "experts", "moe")


@dataclass(frozen=True)
class Parts:
    """Which parts of a model may get adapters."""

    language: bool = True
    attention: bool = True
    mlp: bool = True


@dataclass
class Chosen:
    """Module names for adapters, and those trained in full."""

    targets: list[str]
    modules_to_save: list[str]
    notes: list[str] = field(default_factory=list)


def choose_targets(
    model: Any, requested: Sequence[str] | str | None, modules_to_save: Sequence[str] | None, parts: Parts
) -> Chosen:
    """Resolve what was asked for against a model.

    Args:
        model: a plain transformers model.
        requested: names, ``"all-linear"``, or None for the family's list.
        modules_to_save: modules that are trained in full anyway.
        parts: which kinds of modules may get adapters.

    Raises:
        ConfigErrors: names that match no module.
        ConfigError: one text instead of a list, or nothing left to train.
    """
    if isinstance(requested, str) and requested != ALL_LINEAR:
        rule = f"It is a list of names, '{ALL_LINEAR}', or None for the family's own list."
        raise ConfigError("target_modules", repr(requested), rule, f"Write [{requested!r}].")
    names = [ALL_LINEAR] if requested == ALL_LINEAR else list(requested or ())
    in_full = [name for name in names if name in _ENDS]
    saved = list(dict.fromkeys([*(modules_to_save or ()), *in_full]))
    notes = [f"{' and '.join(in_full)}: trained in full, not by an adapter"] if in_full else []
    asked = [name for name in names if name not in in_full]
    if in_full and not asked:
        raise ConfigError(
            "target_modules",
            repr(names),
            "Embedding and head are trained beside adapters on other modules.",
            "Add 'q_proj' and 'v_proj', or use full_finetuning=True.",
        )
    targets, fused = resolve_targets(model, asked, family_of(model.config.model_type))
    return Chosen(_narrowed(model, targets, parts), saved, [*notes, *fused])


def _narrowed(model: Any, targets: list[str], parts: Parts) -> list[str]:
    if not parts.language:
        raise ConfigError("finetune_language_layers", "False", "A text model has no other layers.", "Leave it True.")
    if parts.attention and parts.mlp:
        return targets
    names = linear_names(model)
    kept = [target for target in targets if _belongs(target, names, parts)]
    if not kept:
        raise ConfigError(
            "finetune_attention_modules, finetune_mlp_modules",
            f"{parts.attention}, {parts.mlp}",
            f"Of {', '.join(targets)} nothing is left to train.",
            "Set one of them to True.",
        )
    return kept


def _belongs(target: str, names: Sequence[str], parts: Parts) -> bool:
    owners = {part for full in names if f".{full}".endswith(f".{target}") for part in full.split(".")[:-1]}
    if any(word in owner for owner in owners for word in _ATTENTION):
        return parts.attention
    if any(word in owner for owner in owners for word in _MLP):
        return parts.mlp
    return parts.attention and parts.mlp
