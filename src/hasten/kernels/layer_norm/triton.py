"""Triton kernels of layer_norm. R outer rows, H inner rows (heads; 1 for plain rows), D width.

A program holds ROWS whole rows in registers. All arithmetic is in float32 (float64 for float64 inputs is the twin's).
"""
# Launches take options that a kernel does not declare.
# pyright: reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

from hasten.kernels.column_sums.triton import Shares, column_sums, share
from hasten.kernels.rows import rounds_of, row_strides


def pick_blocks(width: int) -> tuple[int, int, int]:
    """Block of columns, rows per program, warps: 16 values of a row a thread, as the backward holds six such rows."""
    columns = max(triton.next_power_of_2(width), 16)
    rows = max(1, 2048 // columns)
    warps = 4 if columns * rows <= 2048 else 8 if columns <= 4096 else 16
    return columns, rows, warps


@triton.jit
def layer_norm_fwd_kernel(
    x_ptr, res_ptr, w_ptr, b_ptr, y_ptr, h_ptr, mean_ptr, rstd_ptr,
    rows, H, D, x_r, x_h, res_r, res_h, y_r, y_h, h_r, h_h, eps,
    BIAS: tl.constexpr, ADD: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
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
    mean = tl.sum(x, axis=1) / D
    centred = tl.where(mask, x - mean[:, None], 0.0)  # columns beyond D are 0 before centring, not after
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / D + eps)
    w = tl.load(w_ptr + column, mask=column < D, other=0.0).to(tl.float32)
    y = centred * rstd[:, None] * w[None, :]
    if BIAS:
        y += tl.load(b_ptr + column, mask=column < D, other=0.0).to(tl.float32)[None, :]
    tl.store(y_ptr + (outer * y_r + inner * y_h)[:, None] + column[None, :], y.to(y_ptr.dtype.element_ty), mask=mask)
    tl.store(mean_ptr + row, mean, mask=row < rows)
    tl.store(rstd_ptr + row, rstd, mask=row < rows)


@triton.jit
def _both_sums(first, second, other_first, other_second):
    return first + other_first, second + other_second


@triton.jit
def layer_norm_bwd_kernel(
    dy_ptr, h_ptr, w_ptr, mean_ptr, rstd_ptr, dres_ptr, dh_ptr, sums_ptr,
    rows, H, D, dy_r, dy_h, h_r, h_h, dres_r, dres_h, dh_r, dh_h,
    ADD: tl.constexpr, NEED_DW: tl.constexpr,
    BLOCK_D: tl.constexpr, ROWS: tl.constexpr, ROUNDS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    program, programs = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    column = tl.arange(0, BLOCK_D)
    w = tl.load(w_ptr + column, mask=column < D, other=0.0).to(tl.float32)
    dw = tl.zeros((ROWS, BLOCK_D), dtype=tl.float32)
    db = tl.zeros((ROWS, BLOCK_D), dtype=tl.float32)
    for turn in tl.range(ROUNDS, num_stages=STAGES):  # pyright: ignore[reportGeneralTypeIssues]
        row = (turn * programs + program) * ROWS + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (column < D)[None, :]
        outer, inner = row // H, row % H
        dy = tl.load(
            dy_ptr + (outer * dy_r + inner * dy_h)[:, None] + column[None, :], mask=mask, other=0.0
        ).to(tl.float32)  # fmt: skip
        h = tl.load(h_ptr + (outer * h_r + inner * h_h)[:, None] + column[None, :], mask=mask, other=0.0).to(tl.float32)
        mean = tl.load(mean_ptr + row, mask=row < rows, other=0.0)
        rstd = tl.load(rstd_ptr + row, mask=row < rows, other=0.0)
        normed = (h - mean[:, None]) * rstd[:, None]  # not 0 beyond D, but `dy` and `scaled` are
        scaled = dy * w[None, :]
        level, slope = tl.reduce((scaled, scaled * normed), axis=1, combine_fn=_both_sums)  # one wait for both
        dh = rstd[:, None] * (scaled - (level / D)[:, None] - normed * (slope / D)[:, None])
        if ADD:
            dh += tl.load(
                dres_ptr + (outer * dres_r + inner * dres_h)[:, None] + column[None, :], mask=mask, other=0.0
            ).to(tl.float32)  # fmt: skip
        tl.store(
            dh_ptr + (outer * dh_r + inner * dh_h)[:, None] + column[None, :], dh.to(dh_ptr.dtype.element_ty), mask=mask
        )
        if NEED_DW:
            dw += dy * normed
            db += dy
    if NEED_DW:
        tl.store(sums_ptr + program * 2 * D + column, tl.sum(dw, axis=0), mask=column < D)
        tl.store(sums_ptr + (program * 2 + 1) * D + column, tl.sum(db, axis=0), mask=column < D)


def layer_norm_fwd(
    x: torch.Tensor,
    weight_D: torch.Tensor,
    bias_D: torch.Tensor | None,
    eps: float,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """``y, mean, rstd, h``; `y` is `out` where that is given."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    h = x if residual is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    mean = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    rstd = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    inner, rows = (x.shape[1] if x.ndim == 3 else 1), rstd.numel()
    if rows:
        block, per_program, warps = pick_blocks(x.shape[-1])
        layer_norm_fwd_kernel[(triton.cdiv(rows, per_program),)](
            x, residual, weight_D, bias_D, y, h, mean, rstd,
            rows, inner, x.shape[-1], *row_strides(x), *row_strides(residual), *row_strides(y), *row_strides(h), eps,
            BIAS=bias_D is not None, ADD=residual is not None, BLOCK_D=block, ROWS=per_program, num_warps=warps,
        )  # fmt: skip
    return y, mean, rstd, h


def layer_norm_bwd(
    dy: torch.Tensor,
    h: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    weight_D: torch.Tensor,
    dresidual: torch.Tensor | None,
    need_dw: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """``dh``, and ``dw``, ``db`` in float32 or None."""
    dh = torch.empty(h.shape, dtype=h.dtype, device=h.device)
    width, inner, rows = h.shape[-1], (h.shape[1] if h.ndim == 3 else 1), rstd.numel()
    block, per_program, warps = pick_blocks(width)
    own = Shares(per_program, triton.cdiv(rows, per_program), warps, stages=1)
    if need_dw:
        own = share(rows, block, h, inputs=2 if dresidual is None else 3)
    sums = torch.empty((own.programs, 2 * width), dtype=torch.float32, device=h.device) if need_dw else None
    if rows:
        layer_norm_bwd_kernel[(own.programs,)](
            dy, h, weight_D, mean, rstd, dresidual, dh, sums,
            rows, inner, width, *row_strides(dy), *row_strides(h), *row_strides(dresidual), *row_strides(dh),
            ADD=dresidual is not None, NEED_DW=need_dw, BLOCK_D=block, ROWS=own.per_program,
            ROUNDS=rounds_of(rows, own.per_program, own.programs), STAGES=own.stages, num_warps=own.warps,
        )  # fmt: skip
    dw, db = (None, None) if sums is None else column_sums(sums).split(width)
    return dh, dw, db
