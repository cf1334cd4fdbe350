"""Triton side of factor_columns. N rows, K columns of the weight, P beyond them, R of the factor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl


@triton.jit
def store_factor(
    out_ptr, row, out_n, columns, B_ptr, B_n, start, RANK, FACTOR: tl.constexpr, WIDENED: tl.constexpr, P: tl.constexpr
):  # fmt: skip
    """One row from column `columns` on; `row` is int64."""
    inner = tl.arange(0, P)
    within = (inner >= start) & (inner < start + RANK)
    values = tl.zeros((P,), dtype=tl.float32)
    if FACTOR:
        values = tl.load(B_ptr + row * B_n + inner - start, mask=within, other=0.0).to(tl.float32)
    target = out_ptr + row * out_n + columns + inner
    tl.store(target, values.to(out_ptr.dtype.element_ty), mask=inner < WIDENED)


@dataclass(frozen=True)
class Factor:
    """What a launch passes on: the factor with neighbouring columns, its stride and rank, and the block of columns."""

    B: torch.Tensor | None
    stride: int
    rank: int
    widened: int
    block: int

    @classmethod
    def beside(cls, out: torch.Tensor, columns: int, B: torch.Tensor | None) -> Factor:  # noqa: N803
        """Of `out` ``[N, K + P]`` and a factor ``[N, R]`` or None."""
        widened = out.shape[1] - columns
        block = triton.next_power_of_2(max(widened, 1))
        if B is None:
            return cls(None, 0, 0, widened, block)
        B = B if B.stride(1) == 1 else B.contiguous()  # noqa: N806
        return cls(B, B.stride(0), B.shape[1], widened, block)
