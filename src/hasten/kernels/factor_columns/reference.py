"""The plain torch twin of factor_columns."""

from __future__ import annotations

import torch


def write_factor(out: torch.Tensor, columns: int, B: torch.Tensor | None, start: int) -> None:  # noqa: N803
    """Fills `out` ``[N, K + P]`` from column K on.

    Args:
        out: any row stride.
        columns: K.
        B: ``[N, R]``, or None: zeros.
        start: which of the P columns is its first.
    """
    out[:, columns:] = 0
    if B is not None:
        out[:, columns + start : columns + start + B.shape[1]] = B
