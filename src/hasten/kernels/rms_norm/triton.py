"""Triton kernels of rms_norm. R outer rows, H inner rows (heads; 1 for plain rows), D width.

A program holds ROWS whole rows in registers. All arithmetic is in float32 (float64 for float64 inputs is the twin's).
"""
# Launches take options that a kernel does not declare.
# pyright: reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

from hasten.kernels.column_sums.triton import Shares, column_sums, share
from hasten.kernels.fp8.reference import LARGEST, SMALLEST_SCALE
from hasten.kernels.fp8.triton import row_scale
from hasten.kernels.rows import rounds_of, row_strides


def pick_blocks(width: int) -> tuple[int, int, int]:
    """Block of columns, rows per program, warps."""
    columns = max(triton.next_power_of_2(width), 16)
    rows = max(1, 2048 // columns)
    warps = 4 if columns * rows <= 2048 else 8 if columns <= 8192 else 16
    return columns, rows, warps


@triton.jit
def rms_norm_fwd_kernel(
    x_ptr, res_ptr, w_ptr, y_ptr, h_ptr, rstd_ptr, y8_ptr, scale_ptr,
    rows, H, D, x_r, x_h, res_r, res_h, y_r, y_h, h_r, h_h, eps,
    PLUS_ONE: tl.constexpr, ADD: tl.constexpr, EIGHT: tl.constexpr, LARGEST: tl.constexpr, SMALLEST: tl.constexpr,
    BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK_D)
    mask = (row < rows)[:, None] & (column < D)[None, :]
    outer, inner = row // H, row % H
    x = tl.load(x_ptr + (outer * x_r + inner * x_h)[:, None] + column[None, :], mask=mask, other=0.0)
    if ADD:
        residual = tl.load(res_ptr + (outer * res_r + inner * res_h)[:, None] + column[None, :], mask=mask, other=0.0)
        total = (x.to(tl.float32) + residual.to(tl.float32)).to(h_ptr.dtype.element_ty)
        tl.store(h_ptr + (outer * h_r + inner * h_h)[:, None] + column[None, :], total, mask=mask)
        x = total  # the rounded sum is what the backward will read
    x = x.to(tl.float32)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, axis=1) / D + eps)
    w = tl.load(w_ptr + column, mask=column < D, other=0.0).to(tl.float32)
    if PLUS_ONE:
        w += 1.0
    y = (x * rstd[:, None] * w[None, :]).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + (outer * y_r + inner * y_h)[:, None] + column[None, :], y, mask=mask)
    tl.store(rstd_ptr + row, rstd, mask=row < rows)
    if EIGHT:  # of the rounded values: what a product in 16 bits would read
        value = y.to(tl.float32)
        scale, inverse = row_scale(tl.max(tl.abs(value), axis=1), LARGEST, SMALLEST)
        tl.store(scale_ptr + row, scale, mask=row < rows)
        eight = (value * inverse[:, None]).to(y8_ptr.dtype.element_ty)
        tl.store(y8_ptr + row[:, None] * D + column[None, :], eight, mask=mask)


@triton.jit
def rms_norm_bwd_kernel(
    dy_ptr, h_ptr, w_ptr, rstd_ptr, dres_ptr, dh_ptr, dw_ptr,
    rows, H, D, dy_r, dy_h, h_r, h_h, dres_r, dres_h, dh_r, dh_h,
    PLUS_ONE: tl.constexpr, ADD: tl.constexpr, NEED_DW: tl.constexpr,
    BLOCK_D: tl.constexpr, ROWS: tl.constexpr, ROUNDS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    program, programs = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    column = tl.arange(0, BLOCK_D)
    w = tl.load(w_ptr + column, mask=column < D, other=0.0).to(tl.float32)
    if PLUS_ONE:
        w += 1.0
    dw = tl.zeros((ROWS, BLOCK_D), dtype=tl.float32)
    for turn in tl.range(ROUNDS, num_stages=STAGES):  # pyright: ignore[reportGeneralTypeIssues]
        row = (turn * programs + program) * ROWS + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (column < D)[None, :]
        outer, inner = row // H, row % H
        dy = tl.load(
            dy_ptr + (outer * dy_r + inner * dy_h)[:, None] + column[None, :], mask=mask, other=0.0
        ).to(tl.float32)  # fmt: skip
        h = tl.load(h_ptr + (outer * h_r + inner * h_h)[:, None] + column[None, :], mask=mask, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + row, mask=row < rows, other=0.0)
        normed = h * rstd[:, None]
        scaled = dy * w[None, :]
        dh = rstd[:, None] * (scaled - normed * (tl.sum(scaled * normed, axis=1) / D)[:, None])
        if ADD:
            dh += tl.load(
                dres_ptr + (outer * dres_r + inner * dres_h)[:, None] + column[None, :], mask=mask, other=0.0
            ).to(tl.float32)  # fmt: skip
        tl.store(
            dh_ptr + (outer * dh_r + inner * dh_h)[:, None] + column[None, :], dh.to(dh_ptr.dtype.element_ty), mask=mask
        )
        if NEED_DW:
            dw += dy * normed
    if NEED_DW:
        tl.store(dw_ptr + program * D + column, tl.sum(dw, axis=0), mask=column < D)


def rms_norm_fwd(
    x: torch.Tensor,
    weight_D: torch.Tensor,
    eps: float,
    plus_one: bool,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    eight: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``y, rstd, h``; `y` is `out` where that is given; `eight` as in `op.forward`."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    h = x if residual is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rstd = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    inner, rows = (x.shape[1] if x.ndim == 3 else 1), rstd.numel()
    if rows:
        block, per_program, warps = pick_blocks(x.shape[-1])
        rms_norm_fwd_kernel[(triton.cdiv(rows, per_program),)](
            x, residual, weight_D, y, h, rstd, *(eight or (None, None)),
            rows, inner, x.shape[-1], *row_strides(x), *row_strides(residual), *row_strides(y), *row_strides(h), eps,
            PLUS_ONE=plus_one, ADD=residual is not None, EIGHT=eight is not None, LARGEST=LARGEST,
            SMALLEST=SMALLEST_SCALE, BLOCK_D=block, ROWS=per_program, num_warps=warps,
        )  # fmt: skip
    return y, rstd, h


def rms_norm_bwd(
    dy: torch.Tensor,
    h: torch.Tensor,
    rstd: torch.Tensor,
    weight_D: torch.Tensor,
    plus_one: bool,
    dresidual: torch.Tensor | None,
    need_dw: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``dh``, and ``dw`` in float32 or None."""
    dh = torch.empty(h.shape, dtype=h.dtype, device=h.device)
    width, inner, rows = h.shape[-1], (h.shape[1] if h.ndim == 3 else 1), rstd.numel()
    block, per_program, warps = pick_blocks(width)
    own = Shares(per_program, triton.cdiv(rows, per_program), warps, stages=1)
    if need_dw:
        own = share(rows, block, h, inputs=2 if dresidual is None else 3)
    partial = torch.empty((own.programs, width), dtype=torch.float32, device=h.device) if need_dw else None
    if rows:
        rms_norm_bwd_kernel[(own.programs,)](
            dy, h, weight_D, rstd, dresidual, dh, partial,
            rows, inner, width, *row_strides(dy), *row_strides(h), *row_strides(dresidual), *row_strides(dh),
            PLUS_ONE=plus_one, ADD=dresidual is not None, NEED_DW=need_dw, BLOCK_D=block, ROWS=own.per_program,
            ROUNDS=rounds_of(rows, own.per_program, own.programs), STAGES=own.stages, num_warps=own.warps,
        )  # fmt: skip
    return dh, None if partial is None else column_sums(partial)
