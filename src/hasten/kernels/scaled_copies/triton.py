"""Triton kernel of scaled_copies. A program copies BLOCK values of one matrix."""
# Launches take options that a kernel does not declare.
# pyright: reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 2048


@triton.jit
def scaled_copies_kernel(
    part_ptr, matrix_ptr, factor_ptr, like_source_ptr, like_target_ptr, BLOCK: tl.constexpr
):  # fmt: skip
    program = tl.program_id(0)
    matrix = tl.load(part_ptr + 2 * program)
    start = tl.load(part_ptr + 2 * program + 1)
    source_ptr = tl.load(matrix_ptr + 5 * matrix).to(like_source_ptr.dtype)
    target_ptr = tl.load(matrix_ptr + 5 * matrix + 1).to(like_target_ptr.dtype)
    columns, stride, count = (
        tl.load(matrix_ptr + 5 * matrix + 2),
        tl.load(matrix_ptr + 5 * matrix + 3),
        tl.load(matrix_ptr + 5 * matrix + 4),
    )
    factor = tl.load(factor_ptr + matrix)
    place = start + tl.arange(0, BLOCK)
    mask = place < count
    value = tl.load(source_ptr + place, mask=mask, other=0.0).to(tl.float32) * factor
    target = target_ptr + (place // columns) * stride + place % columns
    tl.store(target, value.to(like_target_ptr.dtype.element_ty), mask=mask)


def run(parts: torch.Tensor, matrices: torch.Tensor, factors: torch.Tensor, like: tuple[torch.Tensor, ...]) -> None:
    """One launch over the tables that `op.table` makes."""
    scaled_copies_kernel[(parts.shape[0],)](parts, matrices, factors, *like, BLOCK=BLOCK, num_warps=4)
