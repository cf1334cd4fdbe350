"""Triton kernels of rope. A program turns all heads of one row, from one tensor to another or in place."""
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
def _turn(
    x_row, x_h, out_row, out_h, H, cos, sin, R_HALF, REST,
    INTERLEAVED: tl.constexpr, COPY_REST: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_REST: tl.constexpr,
):  # fmt: skip
    """All heads of one row."""
    head, column = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_R)
    mask = (head < H)[:, None] & (column < R_HALF)[None, :]
    if INTERLEAVED:
        first, second = 2 * column, 2 * column + 1
    else:
        first, second = column, column + R_HALF
    x_rows, out_rows = x_row + head * x_h, out_row + head * out_h
    x1 = tl.load(x_rows[:, None] + first[None, :], mask=mask, other=0.0).to(tl.float32)
    x2 = tl.load(x_rows[:, None] + second[None, :], mask=mask, other=0.0).to(tl.float32)
    y1, y2 = x1 * cos - x2 * sin, x2 * cos + x1 * sin
    tl.store(out_rows[:, None] + first[None, :], y1.to(out_row.dtype.element_ty), mask=mask)
    tl.store(out_rows[:, None] + second[None, :], y2.to(out_row.dtype.element_ty), mask=mask)
    if COPY_REST:
        beyond = tl.arange(0, BLOCK_REST)
        passes = (head < H)[:, None] & (beyond < REST)[None, :]
        kept = tl.load(x_rows[:, None] + 2 * R_HALF + beyond[None, :], mask=passes, other=0.0)
        tl.store(out_rows[:, None] + 2 * R_HALF + beyond[None, :], kept, mask=passes)


@triton.jit
def _angle(cos_ptr, sin_ptr, row, cos_c, sin_c, R_HALF, BLOCK_R: tl.constexpr):
    column = tl.arange(0, BLOCK_R)
    cos = tl.load(cos_ptr + row * cos_c + column, mask=column < R_HALF, other=0.0).to(tl.float32)[None, :]
    sin = tl.load(sin_ptr + row * sin_c + column, mask=column < R_HALF, other=0.0).to(tl.float32)[None, :]
    return cos, sin


@triton.jit
def rope_kernel(
    x_ptr, out_ptr, cos_ptr, sin_ptr, C, H, R_HALF, REST, x_m, x_h, out_m, out_h, cos_c, sin_c,
    BACKWARD: tl.constexpr, INTERLEAVED: tl.constexpr, COPY_REST: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_REST: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    cos, sin = _angle(cos_ptr, sin_ptr, row % C, cos_c, sin_c, R_HALF, BLOCK_R)
    if BACKWARD:
        sin = -sin
    _turn(
        x_ptr + row * x_m, x_h, out_ptr + row * out_m, out_h, H, cos, sin, R_HALF, REST,
        INTERLEAVED, COPY_REST, BLOCK_H, BLOCK_R, BLOCK_REST,
    )  # fmt: skip


@triton.jit
def rope_join_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, cos_ptr, sin_ptr, C, H, K, WIDTH, R_HALF, REST,
    q_m, q_h, k_m, k_h, v_m, v_h, out_m, cos_c, sin_c,
    INTERLEAVED: tl.constexpr, COPY_REST: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_REST: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    cos, sin = _angle(cos_ptr, sin_ptr, row % C, cos_c, sin_c, R_HALF, BLOCK_R)
    q_out = out_ptr + row * out_m
    k_out, v_out = q_out + H * WIDTH, q_out + (H + K) * WIDTH
    _turn(
        q_ptr + row * q_m, q_h, q_out, WIDTH, H, cos, -sin, R_HALF, REST,
        INTERLEAVED, COPY_REST, BLOCK_H, BLOCK_R, BLOCK_REST,
    )  # fmt: skip
    _turn(
        k_ptr + row * k_m, k_h, k_out, WIDTH, K, cos, -sin, R_HALF, REST,
        INTERLEAVED, COPY_REST, BLOCK_K, BLOCK_R, BLOCK_REST,
    )  # fmt: skip
    head, column = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_W)
    mask = (head < K)[:, None] & (column < WIDTH)[None, :]
    v = tl.load(v_ptr + row * v_m + head[:, None] * v_h + column[None, :], mask=mask, other=0.0)
    tl.store(v_out + head[:, None] * WIDTH + column[None, :], v, mask=mask)


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


def join(
    dq_MHD: torch.Tensor,
    dk_MKD: torch.Tensor,
    dv_MKD: torch.Tensor,
    cos_CR: torch.Tensor,
    sin_CR: torch.Tensor,
    out_MN: torch.Tensor,
    interleaved: bool,
) -> None:
    """Writes q and k turned back, and v, side by side."""
    rows, heads, width = dq_MHD.shape
    kept = dk_MKD.shape[1]
    half = cos_CR.shape[-1] // 2
    rest = width - 2 * half
    if not rows:
        return
    block_h, block_r, block_rest, warps = pick_blocks(heads, half, rest)
    rope_join_kernel[(rows,)](
        dq_MHD, dk_MKD, dv_MKD, out_MN, cos_CR, sin_CR, cos_CR.shape[0], heads, kept, width, half, rest,
        dq_MHD.stride(0), dq_MHD.stride(1), dk_MKD.stride(0), dk_MKD.stride(1), dv_MKD.stride(0), dv_MKD.stride(1),
        out_MN.stride(0), cos_CR.stride(0), sin_CR.stride(0),
        INTERLEAVED=interleaved, COPY_REST=rest > 0, BLOCK_H=block_h, BLOCK_K=triton.next_power_of_2(kept),
        BLOCK_R=block_r, BLOCK_REST=max(block_rest, 1), BLOCK_W=triton.next_power_of_2(width), num_warps=warps,
    )  # fmt: skip
