"""The settings of an adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hasten.schema import option


@dataclass(kw_only=True)
class LoraSettings:
    """A low-rank adapter (LoRA): W + scale * B A, with A and B trained and W frozen."""

    r: int = option(16, "rank of the adapter", low=1)
    alpha: float = option(16.0, "strength: the adapter is scaled by alpha / r (alpha / sqrt(r) with rslora)", low=0)
    dropout: float = option(0.0, "share of the adapter's inputs set to zero in training", low=0, high=1)
    targets: list[str] = option([], "names of the modules that get an adapter; none: the family's own list")
    rslora: bool = option(False, "scale by alpha / sqrt(r), which keeps high ranks stable (Kalajdzievski 2023)")
    init: Literal["default", "pissa", "olora", "loftq"] = option(
        "default",
        "where it begins: at zero; in the main part of the weights, which must be in 16 bits (PiSSA, OLoRA); or as "
        "what 4 bits lost of them (LoftQ), which takes load_in_4bit",
    )
    bias: Literal["none", "all", "lora_only"] = option("none", "which biases are trained")
    modules_to_save: list[str] = option([], "modules trained in full beside the adapter, e.g. lm_head")
    seed: int = option(3407, "seed of the adapter's first values", low=0)
