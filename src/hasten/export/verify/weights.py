"""Weights as they were meant against weights as they are read back.

Each value of a float type (F32, F16, BF16) is compared by itself: a norm hides what is wrong with small values beside
large ones, and is no measure where all are small. Rounding to nearest moves v by at most max(u |v|, h), where u is half
a step of 1 and h half a step of the least values (subnormals). Where a format keeps v + c (Gemma's norms) and its
reader takes c off again, both in float32, the sum is off by at most u |v + c|, and the difference r by u |r|.

Of blocks of few bits errors are norms, relative to the tensor's own. A type's bound is the worst that its rounding can
do: values of a block are off by at most half a step, steps are the block's largest value over the levels on its side,
and the worst block has one value of that size and the rest below half a step. 8-bit floats are off by half a step of
their own size. A tensor of other rows, or of another order, is off by 1.4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import torch

from hasten.export.verify.checks import Check
from hasten.export.weights import Weights

BOUNDS: dict[str, float] = {
    "F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8,
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

_LEAST: dict[str, float] = {"F32": 2.0**-150, "F16": 2.0**-25, "BF16": 2.0**-134}
"""Half a step of the least values; half a step of others is in `BOUNDS`, relative."""
_DTYPES: dict[str, torch.dtype] = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_VALUES = 2**22
"""That are compared at once."""


def compare_weights(
    target: str,
    meant: Weights,
    found: Weights,
    kind_of: Callable[[str], str],
    *,
    exact: bool = False,
    added: Callable[[str], float] = lambda name: 0.0,
) -> tuple[Check, float]:
    """Every weight of two models.

    Args:
        target: for the check's line.
        meant: what was to be written.
        found: what is read back.
        kind_of: the type that a weight was written in, by its name in the checkpoint.
        exact: values of float types must be what rounding to nearest gives, not only as near as that.
        added: what the format adds to a weight's values and its reader takes off, by the name in the checkpoint; how
            near these must be is above.

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
        apart = _apart(value, other, kind, exact, added(name))
        off, whole = off + apart.away, whole + apart.size
        share = apart.share
        if apart.differ:
            counted = f"{apart.differ} of {value.numel()} values are not what rounding to {kind} gives"
            return Check(target, "weights", "wrong", f"'{name}' is off by {share:.2g} of its norm: {counted}"), share
        if kind in _LEAST:
            worst = max(worst, (apart.reach, name))
            continue
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


@dataclass
class _Apart:
    """Two tensors."""

    away: float = 0.0
    """Squares of differences, summed."""
    size: float = 0.0
    """Squares of what was meant, summed."""
    differ: int = 0
    """Values of a float type that are further off than its rounding."""
    reach: float = 0.0
    """The largest part of its own bound that a value of a float type is off by."""

    @property
    def share(self) -> float:
        """Of the norm."""
        return sqrt(self.away / self.size) if self.size else float("inf") if self.away else 0.0


def _apart(value: torch.Tensor, other: torch.Tensor, kind: str, exact: bool, added: float) -> _Apart:
    result = _Apart()
    for one, two in zip(value.reshape(-1).split(_VALUES), other.reshape(-1).split(_VALUES), strict=True):
        meant, found = one.double(), two.double()
        difference = (found - meant).abs()
        result.away += float(difference.square().sum())
        result.size += float(meant.square().sum())
        if kind not in _LEAST:
            continue
        if exact and not added:
            right = (one.to(_DTYPES[kind]).double() == found) & found.isfinite()
        else:
            bound = (BOUNDS[kind] * meant.abs()).clamp_(min=_LEAST[kind])
            if added:
                bound = BOUNDS[kind] * ((meant + added).abs() + found.abs())
            right = difference <= bound
            reached = torch.where(difference == 0, 0.0, difference / bound)
            result.reach = max(result.reach, float(reached.max())) if len(reached) else result.reach
        result.differ += int((~right).sum())
    return result


def _is_tied(weights: Weights, name: str) -> bool:
    return name == "lm_head.weight" and bool(weights.config.get("tie_word_embeddings"))
