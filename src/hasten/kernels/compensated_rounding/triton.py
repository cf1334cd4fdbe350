"""Triton kernel of compensated_rounding. N rows, G columns of the group; a program takes some rows."""
# Launches take options that a kernel does not declare.
# pyright: reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

_ROWS, _WARPS = 16, 4


@triton.jit
def round_group_kernel(
    free_ptr, scales_ptr, upper_ptr, levels_ptr, borders_ptr, codes_ptr, errors_ptr,
    N, free_n, scales_n, upper_n, codes_n, errors_n, G: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    mask = (row < N)[:, None] & (column < G)[None, :]
    free = tl.load(free_ptr + row[:, None] * free_n + column[None, :], mask=mask, other=0.0)
    scales = tl.load(scales_ptr + row[:, None] * scales_n + column[None, :], mask=mask, other=1.0)
    one = tl.full((ROWS,), 1.0, tl.float32)
    least = tl.full((ROWS,), 1e-38, tl.float32)  # subnormal: a plain constant would become float64
    for j in range(G):
        here = (column == j)[None, :]
        value = tl.sum(tl.where(here, free, 0.0), axis=1)
        scale = tl.sum(tl.where(here, scales, 0.0), axis=1)
        relative = value * tl.div_rn(one, tl.maximum(scale, least))
        code = tl.zeros((ROWS,), dtype=tl.int32)
        for border in tl.static_range(15):  # pyright: ignore[reportGeneralTypeIssues]
            code += (relative > tl.load(borders_ptr + border)).to(tl.int32)
        level = tl.load(levels_ptr + code)
        error = tl.div_rn(value - level * scale, tl.load(upper_ptr + j * upper_n + j))
        later = tl.load(upper_ptr + j * upper_n + column, mask=(column > j) & (column < G), other=0.0)
        free -= error[:, None] * later[None, :]
        tl.store(codes_ptr + row * codes_n + j, code.to(tl.uint8), mask=row < N)
        tl.store(errors_ptr + row * errors_n + j, error, mask=row < N)


def round_group(
    free_NG: torch.Tensor,
    scales_NG: torch.Tensor,
    upper_GG: torch.Tensor,
    levels: torch.Tensor,
    borders: torch.Tensor,
    codes_NG: torch.Tensor,
    errors_NG: torch.Tensor,
) -> None:
    """See `op.round_group`; columns of all but `upper_GG` are neighbours in memory."""
    rows, columns = free_NG.shape
    upper_GG = upper_GG.contiguous()  # LAPACK's way of storing has rows as neighbours
    round_group_kernel[(triton.cdiv(rows, _ROWS),)](
        free_NG, scales_NG, upper_GG, levels, borders, codes_NG, errors_NG,
        rows, free_NG.stride(0), scales_NG.stride(0), upper_GG.stride(0), codes_NG.stride(0),
        errors_NG.stride(0),
        # G, too, is known when it is compiled: groups have few widths, and Triton 3.6's interpreter under numpy 2.4
        # loops to no other bound.
        G=columns, ROWS=_ROWS, BLOCK=max(16, triton.next_power_of_2(columns)), num_warps=_WARPS,
        enable_fp_fusion=False,  # a product and a sum in one rounding would be other codes than torch's
    )  # fmt: skip
