"""Triton kernels of fp8. M rows, K columns; N x K for weights."""
# Launches take options that a kernel does not declare.
# pyright: reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

_TILE = 64


def pick_blocks(columns: int) -> tuple[int, int]:
    """Columns that a program holds at once, warps: up to 64 values a thread."""
    block = min(max(triton.next_power_of_2(columns), 16), 32768)
    return block, min(16, max(1, block // 1024))


@triton.jit
def row_scale(largest, LARGEST: tl.constexpr, SMALLEST: tl.constexpr):
    """A row's scale and its reciprocal, from its largest absolute value."""
    scale = tl.maximum(tl.math.div_rn(largest, LARGEST), SMALLEST)
    return scale, tl.math.div_rn(1.0, scale)


@triton.jit
def _loaded(x_ptr, factor_ptr, row, x_m, column, K, FACTOR: tl.constexpr):
    x = tl.load(x_ptr + row * x_m + column, mask=column < K, other=0.0).to(tl.float32)
    if FACTOR:
        x *= tl.load(factor_ptr + column, mask=column < K, other=0.0)
    return x


@triton.jit
def fp8_quantize_rows_kernel(
    x_ptr, factor_ptr, out_ptr, scale_ptr, K, x_m, out_m,
    FACTOR: tl.constexpr, LARGEST: tl.constexpr, SMALLEST: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    x = _loaded(x_ptr, factor_ptr, row, x_m, column, K, FACTOR)
    largest = tl.max(tl.abs(x), axis=0)
    for part in tl.static_range(1, PARTS):  # pyright: ignore[reportGeneralTypeIssues]
        more = _loaded(x_ptr, factor_ptr, row, x_m, part * BLOCK + column, K, FACTOR)
        largest = tl.maximum(largest, tl.max(tl.abs(more), axis=0))
    scale, inverse = row_scale(largest, LARGEST, SMALLEST)
    tl.store(scale_ptr + row, scale)
    tl.store(out_ptr + row * out_m + column, (x * inverse).to(out_ptr.dtype.element_ty), mask=column < K)
    for part in tl.static_range(1, PARTS):  # pyright: ignore[reportGeneralTypeIssues]
        more = _loaded(x_ptr, factor_ptr, row, x_m, part * BLOCK + column, K, FACTOR)
        eight = (more * inverse).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + row * out_m + part * BLOCK + column, eight, mask=part * BLOCK + column < K)


@triton.jit
def fp8_transpose_kernel(w_ptr, out_ptr, N, K, w_n, out_k, TILES_K, TILE: tl.constexpr):
    program = tl.program_id(0)
    row = (program // TILES_K).to(tl.int64) * TILE + tl.arange(0, TILE)
    column = (program % TILES_K).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = (row < N)[:, None] & (column < K)[None, :]
    tile = tl.load(w_ptr + row[:, None] * w_n + column[None, :], mask=inside, other=0)
    turned = (column < K)[:, None] & (row < N)[None, :]
    tl.store(out_ptr + column[:, None] * out_k + row[None, :], tl.trans(tile), mask=turned)


def quantize_rows(
    x_MK: torch.Tensor,
    factor_K: torch.Tensor | None,
    out: torch.Tensor,
    scale_M1: torch.Tensor,
    largest: float,
    smallest: float,
) -> None:
    """See `op.quantize_rows`."""
    rows, columns = x_MK.shape
    block, warps = pick_blocks(columns)
    fp8_quantize_rows_kernel[(rows,)](
        x_MK, factor_K, out, scale_M1, columns, x_MK.stride(0), out.stride(0),
        FACTOR=factor_K is not None, LARGEST=largest, SMALLEST=smallest, BLOCK=block,
        PARTS=triton.cdiv(columns, block), num_warps=warps,
    )  # fmt: skip


def transpose(w8_NK: torch.Tensor, out: torch.Tensor) -> None:
    """See `op.transpose`."""
    rows, columns = w8_NK.shape
    tiles = triton.cdiv(columns, _TILE)
    bytes_in, bytes_out = w8_NK.view(torch.uint8), out.view(torch.uint8)
    fp8_transpose_kernel[(triton.cdiv(rows, _TILE) * tiles,)](
        bytes_in, bytes_out, rows, columns, bytes_in.stride(0), bytes_out.stride(0), tiles, TILE=_TILE, num_warps=4
    )
