"""Triton kernels of gated_activation. M rows, N columns, P columns of an adapter.

A program takes one block of columns of one row; where an adapter's part of the gradient is still to be added, which is
a small matrix product, it takes a tile of rows and columns.
"""
# Launches take options that a kernel does not declare.
# pyright: reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

from hasten.kernels.fp8.reference import LARGEST, SMALLEST_SCALE
from hasten.kernels.fp8.triton import row_scale

KINDS = {"silu": 0, "gelu": 1, "gelu_tanh": 2}


def pick_blocks(columns: int, most: int) -> tuple[int, int]:
    """Block of columns, warps: 8 values a thread, which is a 16-byte access of 16-bit values."""
    block = min(max(triton.next_power_of_2(columns), 16), most)
    return block, max(1, block // 256)


def pick_tile(rows: int) -> tuple[int, int, int]:
    """Rows and columns of a tile, warps."""
    return (16 if rows <= 16 else 32), 64, 4


def fits(columns: int) -> bool:
    """Whether an adapter's columns are what a tile's product takes: a power of two that fits beside the tile."""
    return columns in (16, 32, 64, 128)


@triton.jit
def _value(g, KIND: tl.constexpr):
    if KIND == 0:
        return g * tl.sigmoid(g)
    elif KIND == 1:
        return g * 0.5 * (1.0 + tl.erf(g * 0.7071067811865476))
    else:
        t = 0.7978845608028654 * (g + 0.044715 * g * g * g)
        return g * tl.sigmoid(2.0 * t)


@triton.jit
def _slope(g, KIND: tl.constexpr):
    if KIND == 0:
        sigma = tl.sigmoid(g)
        return sigma * (1.0 + g * (1.0 - sigma))
    elif KIND == 1:
        phi = 0.5 * (1.0 + tl.erf(g * 0.7071067811865476))
        return phi + g * tl.exp(-0.5 * g * g) * 0.3989422804014327
    else:
        t = 2.0 * 0.7978845608028654 * (g + 0.044715 * g * g * g)
        half, other = tl.sigmoid(t), tl.sigmoid(-t)  # 1 - half would cancel
        return half + g * 2.0 * half * other * 0.7978845608028654 * (1.0 + 3.0 * 0.044715 * g * g)


@triton.jit
def _place(PARTS, BLOCK: tl.constexpr):
    """Row and columns of a program: neighbours walk along a row, as memory lies."""
    program = tl.program_id(0)
    return (program // PARTS).to(tl.int64), (program % PARTS) * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def gated_activation_fwd_kernel(
    g_ptr, u_ptr, a_ptr, N, PARTS, g_m, u_m, a_m, KIND: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row, column = _place(PARTS, BLOCK)
    mask = column < N
    g = tl.load(g_ptr + row * g_m + column, mask=mask, other=0.0).to(tl.float32)
    u = tl.load(u_ptr + row * u_m + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(a_ptr + row * a_m + column, (_value(g, KIND) * u).to(a_ptr.dtype.element_ty), mask=mask)


@triton.jit
def gated_activation_fwd_fp8_kernel(
    g_ptr, u_ptr, a_ptr, a8_ptr, scale_ptr, N, g_m, u_m, a_m, a8_m,
    KIND: tl.constexpr, LARGEST: tl.constexpr, SMALLEST: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    largest = 0.0
    for part in tl.static_range(PARTS):  # pyright: ignore[reportGeneralTypeIssues]
        column = part * BLOCK + tl.arange(0, BLOCK)
        mask = column < N
        g = tl.load(g_ptr + row * g_m + column, mask=mask, other=0.0).to(tl.float32)
        u = tl.load(u_ptr + row * u_m + column, mask=mask, other=0.0).to(tl.float32)
        a = (_value(g, KIND) * u).to(a_ptr.dtype.element_ty)
        tl.store(a_ptr + row * a_m + column, a, mask=mask)
        largest = tl.maximum(largest, tl.max(tl.abs(a.to(tl.float32)), axis=0))
    scale, inverse = row_scale(largest, LARGEST, SMALLEST)
    tl.store(scale_ptr + row, scale)
    for part in tl.static_range(PARTS):  # pyright: ignore[reportGeneralTypeIssues]
        column = part * BLOCK + tl.arange(0, BLOCK)
        if PARTS > 1:  # written before the maximum was taken, for which all threads of a program wait
            a = tl.load(a_ptr + row * a_m + column, mask=column < N, other=0.0)
        eight = (a.to(tl.float32) * inverse).to(a8_ptr.dtype.element_ty)
        tl.store(a8_ptr + row * a8_m + column, eight, mask=column < N)


@triton.jit
def gated_activation_bwd_kernel(
    da_ptr, g_ptr, u_ptr, dg_ptr, du_ptr, a_ptr, N, PARTS, da_m, g_m, u_m, dg_m, du_m, a_m,
    KIND: tl.constexpr, PRODUCT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, column = _place(PARTS, BLOCK)
    mask = column < N
    da = tl.load(da_ptr + row * da_m + column, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(g_ptr + row * g_m + column, mask=mask, other=0.0).to(tl.float32)
    u = tl.load(u_ptr + row * u_m + column, mask=mask, other=0.0).to(tl.float32)
    value = _value(g, KIND)
    tl.store(dg_ptr + row * dg_m + column, (da * u * _slope(g, KIND)).to(dg_ptr.dtype.element_ty), mask=mask)
    tl.store(du_ptr + row * du_m + column, (da * value).to(du_ptr.dtype.element_ty), mask=mask)
    if PRODUCT:
        tl.store(a_ptr + row * a_m + column, (value * u).to(a_ptr.dtype.element_ty), mask=mask)


@triton.jit
def gated_activation_bwd_lora_kernel(
    da_ptr, xa_ptr, A_ptr, g_ptr, u_ptr, dg_ptr, du_ptr, a_ptr, M, N, da_m, xa_m, A_p, g_m, u_m, dg_m, du_m, a_m,
    KIND: tl.constexpr, PRODUCT: tl.constexpr, P: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, P)
    in_rows, in_columns = row < M, column < N
    mask = in_rows[:, None] & in_columns[None, :]
    xa = tl.load(xa_ptr + row[:, None] * xa_m + inner[None, :], mask=in_rows[:, None], other=0.0)
    A = tl.load(A_ptr + inner[:, None].to(tl.int64) * A_p + column[None, :], mask=in_columns[None, :], other=0.0)
    if WIDE:
        xa, A = xa.to(tl.float32), A.to(tl.float32)
    da = tl.load(da_ptr + row[:, None] * da_m + column[None, :], mask=mask, other=0.0).to(tl.float32)
    da += tl.dot(xa, A, input_precision="ieee")
    g = tl.load(g_ptr + row[:, None] * g_m + column[None, :], mask=mask, other=0.0).to(tl.float32)
    u = tl.load(u_ptr + row[:, None] * u_m + column[None, :], mask=mask, other=0.0).to(tl.float32)
    value = _value(g, KIND)
    dg = da * u * _slope(g, KIND)
    tl.store(dg_ptr + row[:, None] * dg_m + column[None, :], dg.to(dg_ptr.dtype.element_ty), mask=mask)
    tl.store(du_ptr + row[:, None] * du_m + column[None, :], (da * value).to(du_ptr.dtype.element_ty), mask=mask)
    if PRODUCT:
        tl.store(a_ptr + row[:, None] * a_m + column[None, :], (value * u).to(a_ptr.dtype.element_ty), mask=mask)


def forward(
    gate: torch.Tensor,
    up: torch.Tensor,
    kind: str,
    out: torch.Tensor,
    eight: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Writes ``f(g) u`` to `out`, and to `eight` as in `op.forward`."""
    rows, columns = gate.shape
    if rows * columns and eight is not None:
        block = min(max(triton.next_power_of_2(columns), 16), 16384)
        gated_activation_fwd_fp8_kernel[(rows,)](
            gate, up, out, *eight, columns, gate.stride(0), up.stride(0), out.stride(0), eight[0].stride(0),
            KIND=KINDS[kind], LARGEST=LARGEST, SMALLEST=SMALLEST_SCALE, BLOCK=block, PARTS=triton.cdiv(columns, block),
            num_warps=min(16, max(1, block // 512)),
        )  # fmt: skip
    elif rows * columns:
        block, warps = pick_blocks(columns, 1024)
        parts = triton.cdiv(columns, block)
        gated_activation_fwd_kernel[(rows * parts,)](
            gate, up, out, columns, parts, gate.stride(0), up.stride(0), out.stride(0),
            KIND=KINDS[kind], BLOCK=block, num_warps=warps,
        )  # fmt: skip
    return out


def backward(
    da: torch.Tensor,
    gate: torch.Tensor,
    up: torch.Tensor,
    kind: str,
    dgate: torch.Tensor,
    dup: torch.Tensor,
    out: torch.Tensor | None,
    lora: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Writes ``dg``, ``du`` and, where `out` is given, the product; `lora` as in `op.backward`."""
    rows, columns = gate.shape
    if lora is not None and fits(lora[1].shape[0]) and rows * columns:
        xa_MP, A_PN = lora
        block_m, block_n, warps = pick_tile(rows)
        grid = (triton.cdiv(columns, block_n), triton.cdiv(rows, block_m))
        gated_activation_bwd_lora_kernel[grid](
            da, xa_MP, A_PN, gate, up, dgate, dup, out, rows, columns,
            da.stride(0), xa_MP.stride(0), A_PN.stride(0), gate.stride(0), up.stride(0), dgate.stride(0), dup.stride(0),
            0 if out is None else out.stride(0),
            KIND=KINDS[kind], PRODUCT=out is not None, P=A_PN.shape[0],
            WIDE=gate.dtype == torch.float32 or not gate.is_cuda, BLOCK_M=block_m, BLOCK_N=block_n, num_warps=warps,
        )  # fmt: skip
        return dgate, dup
    if lora is not None:
        da = torch.addmm(da, *lora)
    if rows * columns:
        block, warps = pick_blocks(columns, 2048)
        parts = triton.cdiv(columns, block)
        gated_activation_bwd_kernel[(rows * parts,)](
            da, gate, up, dgate, dup, out, columns, parts,
            da.stride(0), gate.stride(0), up.stride(0), dgate.stride(0), dup.stride(0),
            0 if out is None else out.stride(0),
            KIND=KINDS[kind], PRODUCT=out is not None, BLOCK=block, num_warps=warps,
        )  # fmt: skip
    return dgate, dup
