"""Weights as they were meant against weights as they are read back.

Errors are norms relative to the tensor's own. A type's bound is the worst that its rounding can do: values of a block
are off by at most half a step, steps are the block's largest value over the levels on its side, and the worst block has
one value of that size and the rest below half a step. 8-bit floats are off by half a step of their own size. A tensor
of other rows, or of another order, is off by 1.4.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import torch

from hasten.export.verify.checks import Check
from hasten.export.weights import Weights

BOUNDS: dict[str, float] = {
    "F32": 2.0**-20, "F16": 2.0**-11, "BF16": 2.0**-9,
    # sqrt(values of a block) * half a step of its largest value, and a few percent where scales are rounded too
    "E4M3": 2.0**-4,
    "Q8_0": sqrt(32) / 254 * 1.05,
    "Q6_K": sqrt(16) / 64 * 1.05,
    "Q5_0": sqrt(32) / 32, "Q5_1": sqrt(32) / 31, "Q5_K": sqrt(32) / 31 * 1.05,
    "Q4_0": sqrt(32) / 16, "Q4_1": sqrt(32) / 15, "Q4_K": sqrt(32) / 15 * 1.05,
    "IQ4_NL": sqrt(32) * 15 / 127, "IQ4_XS": sqrt(32) * 15 / 127 * 1.05,
    "Q3_K": sqrt(16) / 8 * 1.05,
    "Q2_K": 1.0,
}  # fmt: skip
"""By the type's name in GGUF. Of two bits the worst is no bound at all: off by as much as there is."""

_EXACT: dict[str, torch.dtype] = {"F16": torch.float16, "BF16": torch.bfloat16}


def compare_weights(
    target: str, meant: Weights, found: Weights, kind_of: Callable[[str], str], *, exact: bool = False
) -> tuple[Check, float]:
    """Every weight of two models.

    Args:
        target: for the check's line.
        meant: what was to be written.
        found: what is read back.
        kind_of: the type that a weight was written in, by its name in the checkpoint.
        exact: weights of the 16-bit types must be exactly what rounding gives. Of float32, values that are added
            and taken away again (Gemma's norms) are off by a rounding, so its bound stays; and so do those of types
            with fewer bits, which a file may keep other weights in.

    Returns:
        The check, and the error of all weights together, relative.
    """
    missing, extra = sorted(set(meant.shapes) - set(found.shapes)), sorted(set(found.shapes) - set(meant.shapes))
    if missing and not (len(missing) == 1 and _is_tied(meant, missing[0])):
        return Check(target, "weights", "wrong", f"{len(missing)} are missing, first '{missing[0]}'"), 1.0
    if extra and not (len(extra) == 1 and _is_tied(found, extra[0])):
        return Check(target, "weights", "wrong", f"{len(extra)} were not meant, first '{extra[0]}'"), 1.0
    off, whole, worst = 0.0, 0.0, (0.0, "")
    for name in meant.shapes:
        if name in missing:
            continue
        kind = kind_of(name)
        value, other = meant.read(name), found.read(name)
        if tuple(value.shape) != tuple(other.shape):
            shapes = f"'{name}' has shape {tuple(other.shape)} instead of {tuple(value.shape)}"
            return Check(target, "weights", "wrong", shapes), 1.0
        differ = int((_rounded(value, kind) != other.float()).sum()) if exact else 0
        away = float((value.float() - other.float()).square().sum(dtype=torch.float64))
        size = float(value.float().square().sum(dtype=torch.float64))
        off, whole = off + away, whole + size
        if exact and not differ:
            continue
        share = sqrt(away / size) if size else float("inf") if away else 0.0
        if differ and kind in _EXACT:
            counted = f"{differ} of {value.numel()} values are not what rounding to {kind} gives"
            return Check(target, "weights", "wrong", f"'{name}' is off by {share:.2g} of its norm: {counted}"), share
        if not share <= BOUNDS[kind]:
            said = f"'{name}' is off by {share:.2g} of its norm; {kind} keeps it within {BOUNDS[kind]:.2g}"
            return Check(target, "weights", "wrong", said), share
        worst = max(worst, (share / BOUNDS[kind], name))
    error = sqrt(off / whole) if whole else 0.0
    count = len(meant.shapes) - len(missing)
    if not worst[0]:
        return Check(target, "weights", "equal", f"{count} tensors, rounded once"), error
    said = f"{count} tensors, off by {error:.2%} of their norm; nearest to its bound: '{worst[1]}'"
    return Check(target, "weights", "within", said), error


def _rounded(value: torch.Tensor, kind: str) -> torch.Tensor:
    return value.to(_EXACT.get(kind, torch.float32)).float()


def _is_tied(weights: Weights, name: str) -> bool:
    return name == "lm_head.weight" and bool(weights.config.get("tie_word_embeddings"))
