"""Which implementation of an operator runs: Triton's kernel or its plain torch twin.

Both have the same signature and the same promise, so the choice is one of speed. ``auto`` takes Triton on a GPU that
has it. Interpreting a kernel on a CPU is for tests, so it has to be asked for.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Literal

import torch

from hasten.errors import CapabilityError

Impl = Literal["auto", "torch", "triton"]
Chosen = Literal["torch", "triton"]


@cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def choose(impl: str, like: torch.Tensor) -> Chosen:
    """The implementation that runs.

    Args:
        impl: ``auto``, ``torch`` or ``triton``.
        like: an input; its device decides.

    Raises:
        CapabilityError: Triton was asked for by name and cannot run here.
    """
    # The kernels compute in float32: float64 goes to the twin, which keeps it.
    if impl == "torch" or (impl == "auto" and not (like.is_cuda and has_triton() and like.dtype != torch.float64)):
        return "torch"
    if not has_triton() or not (like.is_cuda or interpreting()):
        raise CapabilityError(
            "impl",
            f"'{impl}' for a tensor on {like.device}",
            "Triton's kernels run on CUDA devices, and elsewhere only in Triton's interpreter.",
            "Use impl='auto' or impl='torch'.",
        )
    return "triton"


def interpreting() -> bool:
    """Whether Triton runs kernels in its interpreter."""
    if not has_triton():
        return False
    import triton

    return bool(triton.knobs.runtime.interpret)  # pyright: ignore[reportAttributeAccessIssue]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums are made in: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)
