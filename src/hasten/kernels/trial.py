"""The smallest kernel that proves that Triton compiles, loads and computes here; also a script that says so.

It needs nothing of hasten, so that it can run in a process of its own.
"""
# Launches take options that a kernel does not declare.
# pyright: reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK, _WIDTH = 128, 100


@triton.jit
def doubled_kernel(x_ptr, out_ptr, width, BLOCK: tl.constexpr):  # noqa: ANN001, ANN201, D103
    column = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + column, mask=column < width, other=0.0)
    tl.store(out_ptr + column, x + x, mask=column < width)


def trial(device: torch.device | str) -> bool:
    """Whether a kernel that doubles a row gives what torch gives.

    Args:
        device: where.

    Raises:
        Exception: whatever Triton, its assembler or the C compiler fail with.
    """
    x = torch.arange(_WIDTH, dtype=torch.float32, device=device)
    out = torch.zeros_like(x)
    doubled_kernel[(1,)](x, out, _WIDTH, BLOCK=_BLOCK)  # pyright: ignore[reportArgumentType]
    return torch.equal(out, x + x)


if __name__ == "__main__":
    print("equal" if trial("cuda") else "not equal")
