"""Triton kernels of nf4. N rows, K columns, P widened columns. A program takes a part of one row, or a tile where the
result is in 8 bits and may be turned round."""
# Launches take options that a kernel does not declare.
# pyright: reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

from hasten.kernels.factor_columns.triton import Factor, store_factor
from hasten.kernels.nf4.packed import Packed


def pick_blocks(columns: int) -> tuple[int, int]:
    """Bytes that a program takes, warps: 8 bytes a thread, 16 values."""
    block = min(max(triton.next_power_of_2(columns // 2), 16), 2048)
    return block, max(1, block // 256)


@triton.jit
def _scale(
    block, mask, absmax_ptr, absmax8_ptr, levels8_ptr, mean_ptr, BLOCKSIZE8: tl.constexpr, NESTED: tl.constexpr
):  # fmt: skip
    """The scale of each block, float32."""
    if NESTED:
        code = tl.load(absmax_ptr + block, mask=mask, other=0).to(tl.int32)
        known = tl.load(levels8_ptr + code) * tl.load(absmax8_ptr + block // BLOCKSIZE8, mask=mask, other=0.0)
        return known + tl.load(mean_ptr)
    else:
        return tl.load(absmax_ptr + block, mask=mask, other=0.0)


@triton.jit
def nf4_dequantize_kernel(
    codes_ptr, absmax_ptr, levels_ptr, absmax8_ptr, levels8_ptr, mean_ptr, out_ptr, B_ptr,
    HALF, PARTS, out_n, B_n, start, RANK,
    BLOCKSIZE: tl.constexpr, BLOCKSIZE8: tl.constexpr, NESTED: tl.constexpr, WHOLE: tl.constexpr, WORDS: tl.constexpr,
    FACTOR: tl.constexpr, WIDENED: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    row, part = (program // PARTS).to(tl.int64), program % PARTS
    byte = part * BLOCK + tl.arange(0, BLOCK)
    if WHOLE:  # rows are whole blocks: one scale for all bytes of a block
        own = tl.arange(0, 2 * BLOCK // BLOCKSIZE)
        first_block = (row * HALF + part * BLOCK) * 2 // BLOCKSIZE
        inside = (part * BLOCK + own * (BLOCKSIZE // 2)) < HALF
        scales = _scale(
            first_block + own, inside, absmax_ptr, absmax8_ptr, levels8_ptr, mean_ptr, BLOCKSIZE8, NESTED
        )  # fmt: skip
        scale = tl.reshape(tl.broadcast_to(scales[:, None], (2 * BLOCK // BLOCKSIZE, BLOCKSIZE // 2)), (BLOCK,))
    else:
        block = (row * HALF + byte) * 2 // BLOCKSIZE  # a block holds whole bytes
        scale = _scale(
            block, byte < HALF, absmax_ptr, absmax8_ptr, levels8_ptr, mean_ptr, BLOCKSIZE8, NESTED
        )  # fmt: skip
    pair = tl.load(codes_ptr + row * HALF + byte, mask=byte < HALF, other=0).to(tl.int32)
    first = (tl.load(levels_ptr + (pair >> 4)) * scale).to(out_ptr.dtype.element_ty)
    second = (tl.load(levels_ptr + (pair & 15)) * scale).to(out_ptr.dtype.element_ty)
    if WORDS:  # both values of a byte are one word of the output
        low = first.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
        high = second.to(tl.int16, bitcast=True).to(tl.int32) << 16
        words = out_ptr.to(tl.pointer_type(tl.int32)) + row * (out_n // 2)
        tl.store(words + byte, low | high, mask=byte < HALF)
    else:
        column = part * (2 * BLOCK) + tl.arange(0, 2 * BLOCK)
        tl.store(out_ptr + row * out_n + column, tl.interleave(first, second), mask=column < 2 * HALF)
    if WIDENED > 0 and part == PARTS - 1:
        store_factor(out_ptr, row, out_n, 2 * HALF, B_ptr, B_n, start, RANK, FACTOR, WIDENED, P)


@triton.jit
def nf4_to_fp8_kernel(
    codes_ptr, absmax_ptr, levels_ptr, absmax8_ptr, levels8_ptr, mean_ptr, inverse_ptr, out_ptr,
    N, HALF, TILES, out_n,
    BLOCKSIZE: tl.constexpr, BLOCKSIZE8: tl.constexpr, NESTED: tl.constexpr, WHOLE: tl.constexpr,
    TURNED: tl.constexpr, ROWS: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    row = (program // TILES).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    byte = (program % TILES) * BYTES + tl.arange(0, BYTES)
    place = row[:, None] * HALF + byte[None, :]
    mask = (row < N)[:, None] & (byte < HALF)[None, :]
    inverse = tl.load(inverse_ptr + row, mask=row < N, other=0.0)[:, None]
    if WHOLE:  # rows are whole blocks: one scale for all bytes of a block
        own = (program % TILES) * (2 * BYTES // BLOCKSIZE) + tl.arange(0, 2 * BYTES // BLOCKSIZE)
        inside_row = (row < N)[:, None] & (own * BLOCKSIZE < 2 * HALF)[None, :]
        block = row[:, None] * (2 * HALF // BLOCKSIZE) + own[None, :]
        scales = inverse * _scale(
            block, inside_row, absmax_ptr, absmax8_ptr, levels8_ptr, mean_ptr, BLOCKSIZE8, NESTED
        )  # fmt: skip
        spread = tl.broadcast_to(scales[:, :, None], (ROWS, 2 * BYTES // BLOCKSIZE, BLOCKSIZE // 2))
        scale = tl.reshape(spread, (ROWS, BYTES))
    else:
        scale = inverse * _scale(
            place * 2 // BLOCKSIZE, mask, absmax_ptr, absmax8_ptr, levels8_ptr, mean_ptr, BLOCKSIZE8, NESTED
        )  # fmt: skip
    pair = tl.load(codes_ptr + place, mask=mask, other=0).to(tl.int32)
    first = (tl.load(levels_ptr + (pair >> 4)) * scale).to(out_ptr.dtype.element_ty)
    second = (tl.load(levels_ptr + (pair & 15)) * scale).to(out_ptr.dtype.element_ty)
    column = (program % TILES) * (2 * BYTES) + tl.arange(0, 2 * BYTES)
    both = tl.interleave(first, second)
    if TURNED:
        inside = (column < 2 * HALF)[:, None] & (row < N)[None, :]
        tl.store(out_ptr + column.to(tl.int64)[:, None] * out_n + row[None, :], tl.trans(both), mask=inside)
    else:
        inside = (row < N)[:, None] & (column < 2 * HALF)[None, :]
        tl.store(out_ptr + row[:, None] * out_n + column[None, :], both, mask=inside)


def pick_tile(turned: bool) -> tuple[int, int, int]:
    """Rows and bytes of a tile, warps: 128 bytes of a turned row; 2 KB of codes."""
    return (128, 32, 8) if turned else (4, 512, 4)


def to_fp8(packed: Packed, inverse_N: torch.Tensor, out: torch.Tensor, turned: bool) -> None:  # noqa: N803
    """See `op.to_fp8`."""
    rows, columns = packed.shape
    nested = packed.nested
    tile_rows, tile_bytes, warps = pick_tile(turned)
    whole = columns % packed.blocksize == 0 and 2 * tile_bytes % packed.blocksize == 0
    tiles = triton.cdiv(columns // 2, tile_bytes)
    nf4_to_fp8_kernel[(triton.cdiv(rows, tile_rows) * tiles,)](
        packed.codes, packed.absmax, packed.levels,
        nested.absmax if nested else None, nested.levels if nested else None, nested.mean if nested else None,
        inverse_N, out, rows, columns // 2, tiles, out.stride(0),
        BLOCKSIZE=packed.blocksize, BLOCKSIZE8=nested.blocksize if nested else 1, NESTED=nested is not None,
        WHOLE=whole, TURNED=turned, ROWS=tile_rows, BYTES=tile_bytes, num_warps=warps, enable_fp_fusion=False,
    )  # fmt: skip


def dequantize(packed: Packed, out: torch.Tensor, B: torch.Tensor | None, start: int) -> None:  # noqa: N803
    """Writes the weight and the columns of its factor to `out` ``[N, K + P]``; see `op.dequantize`."""
    rows, columns = packed.shape
    nested = packed.nested
    block, warps = pick_blocks(columns)
    parts = triton.cdiv(columns // 2, block)
    factor = Factor.beside(out, columns, B)
    whole = columns % packed.blocksize == 0 and (2 * block) % packed.blocksize == 0
    words = out.element_size() == 2 and out.stride(0) % 2 == 0 and out.data_ptr() % 4 == 0
    nf4_dequantize_kernel[(rows * parts,)](
        packed.codes, packed.absmax, packed.levels,
        nested.absmax if nested else None, nested.levels if nested else None, nested.mean if nested else None,
        out, factor.B, columns // 2, parts, out.stride(0), factor.stride, start, factor.rank,
        BLOCKSIZE=packed.blocksize, BLOCKSIZE8=nested.blocksize if nested else 1, NESTED=nested is not None,
        WHOLE=whole, WORDS=words, FACTOR=B is not None, WIDENED=factor.widened, P=factor.block,
        BLOCK=block, num_warps=warps,
        enable_fp_fusion=False,  # a product and a sum in one rounding would not be bitsandbytes' scale
    )  # fmt: skip
