"""Experts: what the live model holds in one parameter ``[E, N, K]``, checkpoints keep weight by weight, or whole.

    live                          on disk
    M.experts.gate_up_proj        M.experts.0.gate_proj.weight, M.experts.0.up_proj.weight, M.experts.1...
    M.experts.down_proj           M.experts.0.down_proj.weight, ...
    model.layers.0.mlp.experts    model.layers.0.block_sparse_moe.experts, with w1, w3 and w2 (Mixtral)

peft keeps the factors of all experts in one matrix each: A ``[E R, K]``, experts outside; B ``[N, R E]``, experts
inside. Which parameter a pair belongs to is told by how deep it lies: peft wraps a module's parameters in their order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

PARAMETERS = ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")
"""A module of experts has these, in this order."""
_PARTS = {"gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")), "down_proj": (("down_proj",), ("w2",))}
_INPUTS_FIRST = ("gpt_oss", "llama4", "llama4_text")
"""Model types whose experts are ``[E, K, N]``."""


@dataclass(frozen=True)
class Place:
    """Where a part of a live parameter is on disk."""

    name: str
    """In the checkpoint."""
    expert: int | None = None
    """Which expert's weight it is; None: all of them, whole."""
    first: int = 0
    """Its first row within the expert's live matrix."""


def on_disk(name: str, shapes: Mapping[str, Any]) -> str | None:
    """A live parameter's own name in a checkpoint; None where it has none."""
    for each in (name, name.replace(".mlp.", ".block_sparse_moe.")):
        if each in shapes:
            return each
    return None


def places(name: str, shapes: Mapping[str, tuple[int, ...]]) -> list[Place]:
    """Where a checkpoint keeps a live parameter of experts; empty: nowhere.

    Args:
        name: the live model's.
        shapes: the checkpoint's.
    """
    whole = on_disk(name, shapes)
    if whole is not None:
        return [Place(whole)]
    module, _, parameter = name.rpartition(".")
    for own in (module, module.replace(".mlp.", ".block_sparse_moe.")):
        for parts in _PARTS.get(parameter, ()):
            found: list[Place] = []
            expert = 0
            while f"{own}.{expert}.{parts[0]}.weight" in shapes:
                first = 0
                for part in parts:
                    each = f"{own}.{expert}.{part}.weight"
                    found.append(Place(each, expert, first))
                    first += shapes[each][0]
                expert += 1
            if found:
                return found
    return []


def targeted(module: str, targets: list[str]) -> list[str]:
    """The parameters of a module of experts that have an adapter, the innermost first.

    Args:
        module: the live model's name.
        targets: peft's `target_parameters`.
    """
    names = [f"{module}.{parameter}" for parameter in PARAMETERS]
    return [name for name in names if any(name == target or name.endswith(f".{target}") for target in targets)]


def factors_of(a: torch.Tensor, b: torch.Tensor, experts: int, expert: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One expert's factors: A ``[R, K]``, B ``[N, R]``."""
    return a.reshape(experts, -1, a.shape[1])[expert], b.reshape(b.shape[0], -1, experts)[:, :, expert]


def inputs_first(model_type: str, shape: tuple[int, ...], inputs: int, outputs: int) -> bool | None:
    """Whether an expert's matrix is ``[K, N]``; None: factors of this size do not fit it.

    Args:
        model_type: decides where both would fit.
        shape: of the parameter, ``[E, ., .]``.
        inputs: K of the factors.
        outputs: N of the factors.
    """
    fits = {False: shape[1:] == (outputs, inputs), True: shape[1:] == (inputs, outputs)}
    if all(fits.values()):
        return model_type in _INPUTS_FIRST
    return next((way for way, fit in fits.items() if fit), None)
