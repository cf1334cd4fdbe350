"""The arithmetic of a merge, for one weight.

    LoRA   W + s B A
    DoRA   m (W + s B A) / |W + s B A|        the norm of each output over its inputs, m in its place
    begun  W + s B A - s B0 A0                where B0 A0 only made up for what 4 bits lost of W

Sums are made in float32 and rounded once, to the dtype of W; a block of rows at a time, so that memory beside W and the
result stays small. Source: Hu et al. 2021 (LoRA), Liu et al. 2024 (DoRA), Kalajdzievski 2023 (rsLoRA, s = alpha over
the root of R).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_VALUES = 1 << 22
"""About how many values a block has."""


@dataclass(frozen=True)
class LowRank:
    """A change of one weight ``[N, K]``."""

    a: torch.Tensor
    """``[R, K]``."""
    b: torch.Tensor
    """``[N, R]``."""
    scale: float
    transposed: bool = False
    """Whether the weight is kept as ``[K, N]``: embeddings, and GPT-2's layers."""
    magnitude: torch.Tensor | None = None
    """``[N]``, of DoRA."""
    begun: tuple[torch.Tensor, torch.Tensor] | None = None
    """Factors that are taken away again."""

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the weight that it changes."""
        shape = self.b.shape[0], self.a.shape[1]
        return (shape[1], shape[0]) if self.transposed else shape


def merged(weight: torch.Tensor, change: LowRank) -> torch.Tensor:
    """The weight with the change in it, in the weight's dtype.

    Args:
        weight: of the change's shape, or with more rows, which stay.
        change: its factors in any floating dtype.
    """
    out = weight.clone()
    rows, columns = change.shape
    if change.magnitude is not None and change.transposed:
        out[:rows] = _given_norms(_sum(weight, change, slice(0, rows)).T, change.magnitude).T.to(weight.dtype)
        return out
    step = max(1, _VALUES // max(columns, 1))
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        total = _sum(weight, change, part)
        if change.magnitude is not None:
            total = _given_norms(total, change.magnitude[part])
        out[part] = total.to(weight.dtype)
    return out


def _sum(weight: torch.Tensor, change: LowRank, rows: slice) -> torch.Tensor:
    total = weight[rows].float() + _product(change.a, change.b, change, rows)
    return total if change.begun is None else total - _product(*change.begun, change, rows)


def _product(a: torch.Tensor, b: torch.Tensor, change: LowRank, rows: slice) -> torch.Tensor:
    if change.transposed:
        return (b.float() @ a[:, rows].float()).T * change.scale
    return (b[rows].float() @ a.float()) * change.scale


def _given_norms(total: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    factor = magnitude.float() / torch.linalg.norm(total, dim=1)
    return factor[:, None] * total
