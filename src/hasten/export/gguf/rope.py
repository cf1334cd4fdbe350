"""Rotary positions as a GGUF file says them: a base, a scaling by name, and factors for each pair of values.

Configurations have two spellings: ``rope_parameters`` (also by kind of layer), or ``rope_theta`` beside
``rope_scaling``.

Shapes: P pairs of a head's rotated values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hasten.errors import CapabilityError, ModelError

_KNOWN = ("default", "linear", "yarn", "llama3", "longrope", "su")


@dataclass(frozen=True)
class Rope:
    """What a configuration says of positions."""

    kind: str
    """``default``, ``linear``, ``yarn``, ``llama3`` or ``longrope``."""
    base: float | None
    settings: Mapping[str, Any]
    """All of them, of layers that see everything."""
    window_base: float | None = None
    """The base of layers with a sliding window, where they have their own."""

    def need(self, name: str) -> Any:
        """A setting that the kind cannot do without.

        Raises:
            ModelError: it is missing.
        """
        if self.settings.get(name) is None:
            rule = f"Positions of kind '{self.kind}' need it."
            raise ModelError(f"rope_parameters.{name}", "missing in config.json", rule, "Copy config.json again.")
        return self.settings[name]


def rope_of(config: Mapping[str, Any]) -> Rope:
    """What a configuration says of positions.

    Raises:
        CapabilityError: a kind that llama.cpp does not have.
    """
    given: Mapping[str, Any] = config.get("rope_parameters") or config.get("rope_scaling") or {}
    everything = dict(given.get("full_attention", given))
    if "full_attention" not in given:
        for name in ("rope_theta", "original_max_position_embeddings", "partial_rotary_factor"):
            if config.get(name) is not None:
                everything.setdefault(name, config[name])
    local = given.get("sliding_attention", {}).get("rope_theta", config.get("rope_local_base_freq"))
    kind = str(everything.get("rope_type", everything.get("type", "default"))).lower()
    if kind not in _KNOWN:
        raise CapabilityError(
            "rope_type",
            f"'{kind}'",
            "llama.cpp has no positions of that kind.",
            "Export it to Hugging Face or vLLM.",
        )
    return Rope("longrope" if kind == "su" else kind, everything.get("rope_theta"), everything, local)


def llama3_factors(rope: Rope, width: int) -> np.ndarray:
    """What LLaMA 3.1's scaling divides each pair's speed by: nothing for fast pairs, `factor` for slow ones.

    Args:
        rope: of kind ``llama3``.
        width: of a head.

    Returns:
        float32 ``[P]``.
    """
    factor, low, high = (float(rope.need(name)) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    original = float(rope.need("original_max_position_embeddings"))
    speeds_P = 1.0 / float(rope.base or 10000.0) ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    waves_P = 2 * math.pi / speeds_P
    smooth_P = (original / waves_P - low) / (high - low)
    between_P = 1 / ((1 - smooth_P) / factor + smooth_P)
    slow_P = torch.where(waves_P > original / low, torch.full_like(waves_P, factor), between_P)
    return torch.where(waves_P < original / high, torch.ones_like(waves_P), slow_P).numpy()


def long_factors(rope: Rope, pairs: int) -> dict[str, np.ndarray] | None:
    """LongRoPE's factors beyond the original window (``long``) and within it (``short``), each float32 ``[P]``.

    Returns:
        None where there are none.

    Raises:
        ModelError: they do not fit the heads.
    """
    if not rope.settings.get("long_factor"):
        return None
    found = {name: np.array(rope.need(f"{name}_factor"), dtype=np.float32) for name in ("long", "short")}
    for name, factors in found.items():
        if factors.shape != (pairs,):
            rule = f"Heads of this model rotate {pairs} pairs."
            raise ModelError(f"{name}_factor", f"{factors.size} factors", rule, "Copy config.json again.")
    return found


def long_attention(context: int, original: int) -> float:
    """What LongRoPE scales attention by, of a context beyond the original."""
    return math.sqrt(1 + math.log(context / original) / math.log(original)) if context > original else 1.0
