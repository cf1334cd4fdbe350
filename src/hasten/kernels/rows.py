"""Rows as kernels take them: how they lie in memory, and how programs share them."""

from __future__ import annotations

import torch


def flat_rows(x: torch.Tensor) -> torch.Tensor:
    """``[R, D]``, copied only where columns are not neighbours in memory, which kernels take for granted."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def row_strides(x: torch.Tensor | None) -> tuple[int, int]:
    """Outer and inner row stride of ``[R, D]`` or ``[R, H, D]``; zeros for None."""
    if x is None:
        return 0, 0
    return (x.stride(0), x.stride(1)) if x.ndim == 3 else (x.stride(0), 0)


def rounds_of(rows: int, per_program: int, programs: int) -> int:
    """How often each program takes its rows: a power of two, so that few variants are compiled; masks cut the rest.

    Args:
        rows: how many there are.
        per_program: how many a program takes at once.
        programs: how many share them.
    """
    tiles = -(-rows // per_program)
    needed = max(1, -(-tiles // max(programs, 1)))
    return 1 << (needed - 1).bit_length()
