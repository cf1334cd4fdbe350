"""What each program has summed of a weight's gradient, added up: one small kernel, in one order."""
# Launches take options that a kernel does not declare.
# pyright: reportCallIssue=false

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl

VALUES = 8192
"""That a program takes at once, where its sums stay in registers."""
_BLOCK = 32


@dataclass(frozen=True)
class Shares:
    """How programs share rows."""

    per_program: int
    """Rows that a program takes at once."""
    programs: int
    warps: int
    stages: int
    """Turns whose rows are on their way from memory."""


def share(rows: int, block: int, like: torch.Tensor, inputs: int) -> Shares:
    """As many programs as the device runs at once: few partial sums, and rows loaded ahead.

    Args:
        rows: how many there are.
        block: columns of a row, with what pads them.
        like: one of the inputs; its device and its dtype decide.
        inputs: tensors that are loaded.
    """
    per_program = min(max(1, VALUES // block), triton.next_power_of_2(max(rows, 1)))  # no more than there are
    multiprocessors, memory = _device(like.device)
    ahead = 3 * inputs * per_program * block * like.element_size()
    return Shares(
        per_program=per_program,
        programs=min(multiprocessors, triton.cdiv(rows, per_program)),
        warps=min(16, max(4, per_program * block // 1024)),
        stages=3 if ahead + 2048 <= memory else 1,
    )


@cache
def _device(device: torch.device) -> tuple[int, int]:
    """Multiprocessors, bytes of shared memory of a program; two and few where kernels are interpreted."""
    if device.type != "cuda":
        return 2, 0
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, properties.shared_memory_per_block_optin


@triton.jit
def column_sums_kernel(partial_ptr, out_ptr, D, P: tl.constexpr, BLOCK: tl.constexpr):
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    for start in range(0, P, BLOCK):
        part = start + tl.arange(0, BLOCK)
        mask = (part < P)[:, None] & (column < D)[None, :]
        total += tl.load(partial_ptr + part[:, None] * D + column[None, :], mask=mask, other=0.0)
    tl.store(out_ptr + column, tl.sum(total, axis=0), mask=column < D)


def column_sums(partial_PD: torch.Tensor) -> torch.Tensor:
    """``[D]``, the sum over the first dimension of a contiguous float32 tensor."""
    programs, width = partial_PD.shape
    total_D = torch.empty(width, dtype=torch.float32, device=partial_PD.device)
    column_sums_kernel[(triton.cdiv(width, _BLOCK),)](partial_PD, total_D, width, P=programs, BLOCK=_BLOCK)  # pyright: ignore[reportArgumentType]
    return total_D
