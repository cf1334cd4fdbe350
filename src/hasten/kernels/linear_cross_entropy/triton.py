"""Triton kernel of linear_cross_entropy: the loss of rows of logits, and their gradient written over them.

R rows, V vocabulary (a constant of the kernel: a process has one or two). A program takes one row, in blocks of
columns; all arithmetic is in float32 (float64 for float64 inputs is the twin's).
"""
# Launches take options that a kernel does not declare.
# pyright: reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

from hasten.kernels.linear_cross_entropy.reference import RowMath

LOWEST = tl.constexpr(-3.0e38)
"""Below every logit; finite, since infinities have no difference."""


def pick_blocks(vocabulary: int) -> tuple[int, int]:
    """Block of columns, warps: 16 values a thread for large vocabularies."""
    block = min(max(triton.next_power_of_2(vocabulary), 16), 16384)
    return block, max(4, block // 512)


@triton.jit
def _value_and_slope(x, scale, cap, after, SOFTCAP: tl.constexpr):  # noqa: ANN202
    """``t`` and ``dt/dx``; tanh by its series near zero, where the other form loses digits."""
    t = x.to(tl.float32) * scale
    slope = scale * after
    if SOFTCAP:
        y = t / cap
        square = y * y
        series = 0.13333333333333333 + square * (-0.05396825396825397 + square * 0.021869488536155203)
        near = y * (1.0 + square * (-0.3333333333333333 + square * series))
        small = tl.exp(-2.0 * tl.abs(y))
        far = (1.0 - small) / (1.0 + small)
        t = cap * tl.where(tl.abs(y) < 0.3, near, tl.where(y < 0, -far, far))
        slope = slope * 4.0 * small / ((1.0 + small) * (1.0 + small))  # 1 - tanh², without the subtraction
    return t * after, slope


@triton.jit
def rows_loss_kernel(
    x_ptr, target_ptr, upstream_ptr, loss_ptr,
    x_r, ignore, scale, cap, after, smooth, even, z_loss,
    V: tl.constexpr, SOFTCAP: tl.constexpr, SMOOTH: tl.constexpr, UPSTREAM: tl.constexpr, GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    x_row = x_ptr + row * x_r
    column = tl.arange(0, BLOCK)
    target = tl.load(target_ptr + row)
    if target == ignore:
        tl.store(loss_ptr + row, 0.0)
        if GRADIENT:
            zero = tl.zeros((BLOCK,), dtype=tl.float32).to(x_ptr.dtype.element_ty)
            for start in range(0, V, BLOCK):
                tl.store(x_row + start + column, zero, mask=start + column < V)
    else:
        known = (target >= 0) & (target < V)
        at_target = tl.load(x_row + target, mask=known, other=float("nan"))
        t_target, slope_target = _value_and_slope(at_target, scale, cap, after, SOFTCAP)
        most = tl.full((BLOCK,), LOWEST, dtype=tl.float32)
        total = tl.zeros((BLOCK,), dtype=tl.float32)
        plain = tl.zeros((BLOCK,), dtype=tl.float32)
        for start in range(0, V, BLOCK):
            mask = start + column < V
            x = tl.load(x_row + start + column, mask=mask, other=0.0)
            t, unused = _value_and_slope(x, scale, cap, after, SOFTCAP)
            higher = tl.where(mask, tl.maximum(most, t), most)
            total = total * tl.exp(most - higher) + tl.where(mask, tl.exp(tl.where(mask, t - higher, 0.0)), 0.0)
            if SMOOTH:
                plain += tl.where(mask, t, 0.0)
            most = higher
        highest = tl.max(most, axis=0)
        log_total = tl.log(tl.sum(total * tl.exp(most - highest), axis=0))
        lse = highest + log_total
        loss = log_total - (t_target - highest) + z_loss * lse * lse  # small numbers first: nothing cancels
        if SMOOTH:
            loss += smooth * (t_target - tl.sum(plain, axis=0) / V)
        tl.store(loss_ptr + row, loss)
        if GRADIENT:
            factor = tl.where(known, 1.0, float("nan"))
            if UPSTREAM:
                factor *= tl.load(upstream_ptr + row)
            times = 1.0 + 2.0 * z_loss * lse
            for start in range(0, V, BLOCK):
                mask = start + column < V
                x = tl.load(x_row + start + column, mask=mask, other=0.0)
                t, slope = _value_and_slope(x, scale, cap, after, SOFTCAP)
                dt = tl.exp(tl.where(mask, (t - highest) - log_total, 0.0)) * times - even
                dt = tl.where(start + column == target, dt - (1.0 - smooth), dt)
                tl.store(x_row + start + column, (dt * slope * factor).to(x_ptr.dtype.element_ty), mask=mask)


def rows_loss(
    x_RV: torch.Tensor,
    target_R: torch.Tensor,
    math: RowMath,
    *,
    gradient: bool,
    upstream_R: torch.Tensor | None = None,
) -> torch.Tensor:
    """Losses per row in float32; with `gradient`, dloss/dx is written over x."""
    rows, vocabulary = x_RV.shape
    loss_R = torch.empty(rows, dtype=torch.float32, device=x_RV.device)
    block, warps = pick_blocks(vocabulary)
    if rows:
        rows_loss_kernel[(rows,)](
            x_RV, target_R, upstream_R, loss_R,
            x_RV.stride(0), math.ignore_index, math.scale, math.softcap or 1.0, math.after,
            math.label_smoothing, math.label_smoothing / vocabulary, math.z_loss,
            V=vocabulary, SOFTCAP=math.softcap is not None, SMOOTH=math.label_smoothing > 0,
            UPSTREAM=upstream_R is not None, GRADIENT=gradient, BLOCK=block, num_warps=warps,
        )  # fmt: skip
    return loss_R
