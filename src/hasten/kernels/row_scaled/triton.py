"""Triton kernel of row_scaled. N rows, K columns, P widened columns. A program takes a part of one row."""
# Launches take options that a kernel does not declare.
# pyright: reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

from hasten.kernels.factor_columns.triton import Factor, store_factor
from hasten.kernels.row_scaled.rows import RowScaled


def pick_blocks(columns: int) -> tuple[int, int]:
    """Columns that a program takes, warps: 16 values a thread."""
    block = min(max(triton.next_power_of_2(columns), 16), 4096)
    return block, max(1, block // 512)


@triton.jit
def row_scaled_dequantize_kernel(
    codes_ptr, scale_ptr, out_ptr, B_ptr, K, PARTS, codes_n, scale_n, out_n, B_n, start, RANK,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, FLOATS: tl.constexpr, FACTOR: tl.constexpr,
    WIDENED: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    row, part = (program // PARTS).to(tl.int64), program % PARTS
    column = part * BLOCK + tl.arange(0, BLOCK)
    code = tl.load(codes_ptr + row * codes_n + column, mask=column < K, other=0)
    if FLOATS:
        bits = code.to(tl.int32)
        placed = ((bits & 0x7F) << 20) | ((bits & 0x80) << 24)
        value = placed.to(tl.float32, bitcast=True) * 1.329227995784916e36  # 2^120
        value = tl.where((bits & 0x7F) == 0x7F, float("nan"), value)
    else:
        value = code.to(tl.float32)
    if COLUMNS > 0:  # a scale for each block
        value *= tl.load(scale_ptr + (row // ROWS) * scale_n + column // COLUMNS, mask=column < K, other=0.0)
    else:
        value *= tl.load(scale_ptr + row)
    tl.store(out_ptr + row * out_n + column, value.to(out_ptr.dtype.element_ty), mask=column < K)
    if WIDENED > 0 and part == PARTS - 1:
        store_factor(out_ptr, row, out_n, K, B_ptr, B_n, start, RANK, FACTOR, WIDENED, P)


def dequantize(
    weight: RowScaled,
    out: torch.Tensor,
    B: torch.Tensor | None,  # noqa: N803
    start: int,
) -> None:
    """See `op.dequantize`."""
    rows, columns = weight.shape
    block, warps = pick_blocks(columns)
    parts, factor = triton.cdiv(columns, block), Factor.beside(out, columns, B)
    rows_together, columns_together = weight.blocks or (1, 0)
    row_scaled_dequantize_kernel[(rows * parts,)](
        weight.codes, weight.scale, out, factor.B, columns, parts, weight.codes.stride(0),
        weight.scale.stride(0), out.stride(0), factor.stride, start, factor.rank,
        ROWS=rows_together, COLUMNS=columns_together, FLOATS=weight.floats, FACTOR=B is not None,
        WIDENED=factor.widened, P=factor.block, BLOCK=block, num_warps=warps,
    )  # fmt: skip
