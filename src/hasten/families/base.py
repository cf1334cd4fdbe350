"""The descriptor that a family file fills in, and the lookup by model type.

A family is data, not code: where its parts are, what it is called elsewhere, and what has been *shown* to work with
it. A capability that is not listed is untested and treated as such; nothing is assumed because a name looks familiar.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Literal

import hasten.families

ATTENTION_AND_MLP = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Supported:
    """Works, and this test proves it (``tests/...::name``)."""

    test: str


@dataclass(frozen=True)
class Unsupported:
    """Does not work, for this reason."""

    reason: str


Capability = Supported | Unsupported


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Where the parts of a decoder layer are, and their arithmetic, for the fast path.

    One form covers the families that have it: norm, q/k/v, RoPE, attention, output, residual; norm, gated MLP,
    residual.
    """

    layers: str = "layers"
    """Path to the decoder layers inside the decoder."""
    final_norm: str = "norm"
    attention: str = "self_attn"
    mlp: str = "mlp"
    norms: tuple[str, str] = ("input_layernorm", "post_attention_layernorm")
    """Before attention, before the MLP."""
    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    """In this order; one name where they are one matrix."""
    out: str = "o_proj"
    gate_up: tuple[str, ...] = ("gate_proj", "up_proj")
    down: str = "down_proj"
    head_norms: tuple[str, str] | None = None
    """Norms of each query and key head before RoPE."""
    plus_one: bool = False
    """The stored norm weight is the scale minus one."""
    window: Literal["none", "config", "attention"] = "none"
    """Who knows the sliding window: nobody, the config, or each attention module."""


@dataclass(frozen=True, kw_only=True)
class Gguf:
    """What a GGUF file of the family is, beyond what every decoder says of itself."""

    arch: str
    """``general.architecture``."""
    permuted: bool = False
    """Whether rows of queries and keys lie in pairs, not in halves."""
    plus_one: bool = False
    """Norms: the file has the scale, the checkpoint the scale minus one."""
    tied: bool = False
    """Whether the head is the embedding where config.json does not say."""
    sizes: bool = False
    """Whether the file says how many tokens there are and how wide rotated heads are."""
    window: Literal["none", "context", "config", "always"] = "none"
    """Whether the file says the sliding window: never; never, so its context ends where the window does, because
    llama.cpp would look beyond; where the config has one; or also where it has none (0)."""
    long_factors: bool = False
    """Positions beyond the original window have factors of their own (LongRoPE), two tensors of the file."""
    head_width: int | None = None
    """Of configs without ``head_dim``, where it is not the width divided by the heads."""
    granted: Mapping[str, bool] = field(default_factory=lambda: MappingProxyType({}))
    """Switches of config.json that llama.cpp takes for granted; one that is missing is off."""
    beyond: tuple[str, ...] = ()
    """Tokens of the tokenizer that a model without them may have no row for."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture family."""

    name: str
    """How people call it."""
    model_types: tuple[str, ...]
    """``config.model_type`` values it answers to."""
    lora_targets: tuple[str, ...] = ATTENTION_AND_MLP
    """Module names that get an adapter when the user names none."""
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    """Modules of this family that hold several projections in one matrix: own name -> the names people ask for."""
    blocks: Blocks | None = None
    """The fast path's map of a layer; None: plain modules."""
    gguf: Gguf | None = None
    """Its form in GGUF files; None: there is none here."""
    capabilities: Mapping[str, Capability] = field(default_factory=lambda: MappingProxyType({}))
    """``packing`` ... -> what is known about it. A missing key means untested."""
    tiny: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    """Config fields of a random two-layer model with odd sizes, for parity tests."""

    def supports(self, capability: str) -> bool:
        """Whether a test proves the capability."""
        return isinstance(self.capabilities.get(capability), Supported)


GENERIC = Family(name="generic", model_types=())
"""Any architecture without a file of its own: trains on plain modules and padded rows."""


@cache
def all_families() -> tuple[Family, ...]:
    """Every family file's descriptor.

    Raises:
        RuntimeError: two files claim one model type.
    """
    families: list[Family] = []
    claimed: dict[str, str] = {}
    for module_info in pkgutil.iter_modules(hasten.families.__path__):
        if module_info.name == "base":
            continue
        family: Family = importlib.import_module(f"hasten.families.{module_info.name}").FAMILY
        for model_type in family.model_types:
            if model_type in claimed:
                raise RuntimeError(
                    f"model type {model_type} is claimed by {claimed[model_type]} and {module_info.name}"
                )
            claimed[model_type] = module_info.name
        families.append(family)
    return tuple(families)


def family_of(model_type: str) -> Family:
    """The family that answers to a model type, or `GENERIC`."""
    for family in all_families():
        if model_type in family.model_types:
            return family
    return GENERIC
