"""Triton kernel of rope. A program turns all heads of one row, from one tensor to another or in place."""
# Launches take options that a kernel does not declare.
# pyright: reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl


def pick_blocks(heads: int, half: int, rest: int) -> tuple[int, int, int, int]:
    """Block of heads, of half the rotary width, of what passes unchanged; warps."""
    block_h, block_r = triton.next_power_of_2(heads), max(triton.next_power_of_2(half), 1)
    return block_h, block_r, triton.next_power_of_2(rest) if rest else 0, 4 if block_h * block_r <= 2048 else 8


@triton.jit
def rope_kernel(
    x_ptr, out_ptr, cos_ptr, sin_ptr, C, H, R_HALF, REST, x_m, x_h, out_m, out_h, cos_c, sin_c,
    BACKWARD: tl.constexpr, INTERLEAVED: tl.constexpr, COPY_REST: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_REST: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head, column = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_R)
    angle = row % C
    cos = tl.load(cos_ptr + angle * cos_c + column, mask=column < R_HALF, other=0.0).to(tl.float32)[None, :]
    sin = tl.load(sin_ptr + angle * sin_c + column, mask=column < R_HALF, other=0.0).to(tl.float32)[None, :]
    if BACKWARD:
        sin = -sin
    mask = (head < H)[:, None] & (column < R_HALF)[None, :]
    if INTERLEAVED:
        first, second = 2 * column, 2 * column + 1
    else:
        first, second = column, column + R_HALF
    x_rows, out_rows = x_ptr + row * x_m + head * x_h, out_ptr + row * out_m + head * out_h
    x1 = tl.load(x_rows[:, None] + first[None, :], mask=mask, other=0.0).to(tl.float32)
    x2 = tl.load(x_rows[:, None] + second[None, :], mask=mask, other=0.0).to(tl.float32)
    y1, y2 = x1 * cos - x2 * sin, x2 * cos + x1 * sin
    tl.store(out_rows[:, None] + first[None, :], y1.to(out_ptr.dtype.element_ty), mask=mask)
    tl.store(out_rows[:, None] + second[None, :], y2.to(out_ptr.dtype.element_ty), mask=mask)
    if COPY_REST:
        beyond = tl.arange(0, BLOCK_REST)
        passes = (head < H)[:, None] & (beyond < REST)[None, :]
        kept = tl.load(x_rows[:, None] + 2 * R_HALF + beyond[None, :], mask=passes, other=0.0)
        tl.store(out_rows[:, None] + 2 * R_HALF + beyond[None, :], kept, mask=passes)


def rotate(
    x_MHD: torch.Tensor,
    cos_CR: torch.Tensor,
    sin_CR: torch.Tensor,
    out_MHD: torch.Tensor,
    backward: bool,
    interleaved: bool,
) -> torch.Tensor:
    """Writes the turned rows to `out_MHD`, which may be `x_MHD` itself."""
    rows, heads, width = x_MHD.shape
    half = cos_CR.shape[-1] // 2
    rest = width - 2 * half
    if not rows * heads:
        return out_MHD
    block_h, block_r, block_rest, warps = pick_blocks(heads, half, rest)
    rope_kernel[(rows,)](
        x_MHD, out_MHD, cos_CR, sin_CR, cos_CR.shape[0], heads, half, rest,
        x_MHD.stride(0), x_MHD.stride(1), out_MHD.stride(0), out_MHD.stride(1), cos_CR.stride(0), sin_CR.stride(0),
        BACKWARD=backward, INTERLEAVED=interleaved, COPY_REST=rest > 0 and out_MHD.data_ptr() != x_MHD.data_ptr(),
        BLOCK_H=block_h, BLOCK_R=block_r, BLOCK_REST=max(block_rest, 1), num_warps=warps,
    )  # fmt: skip
    return out_MHD
