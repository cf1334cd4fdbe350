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


def copy_rows(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy between rows that lie apart, in 8-byte words where they can be read so.

    torch copies strided values one by one, however small they are.

    Args:
        target: any outer strides.
        source: of the target's shape and dtype.
    """
    if _in_words(target) and _in_words(source) and target.dtype == source.dtype:
        target, source = target.view(torch.int64), source.view(torch.int64)
    target.copy_(source)


def _in_words(x: torch.Tensor) -> bool:
    if x.stride(-1) != 1 or not x.element_size() < 8:
        return False
    places = (x.storage_offset(), x.shape[-1], *x.stride()[:-1])
    return all(place * x.element_size() % 8 == 0 for place in places)
