"""Which implementation of an operator runs: Triton's kernel or its plain torch twin.

Both have the same signature and the same promise, so the choice is one of speed. ``auto`` takes Triton on a GPU where
it compiles: an assembler that does not know the card, or a missing C compiler, costs speed and not the run, and the run
header says so. Interpreting a kernel on a CPU is for tests, so it has to be asked for.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import subprocess
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
    # The kernels compute in float32: float64 goes to the twin, which keeps it. On a CPU nothing is tried.
    if impl == "torch" or (
        impl == "auto" and (not like.is_cuda or like.dtype == torch.float64 or not has_triton() or triton_failure())
    ):
        return "torch"
    if not has_triton() or not (like.is_cuda or interpreting()):
        raise CapabilityError(
            "impl",
            f"'{impl}' for a tensor on {like.device}",
            "Triton's kernels run on CUDA devices, and elsewhere only in Triton's interpreter.",
            "Use impl='auto' or impl='torch'.",
        )
    if like.is_cuda and (failure := triton_failure()):
        raise CapabilityError(
            "impl",
            f"'{impl}', and Triton cannot run a kernel ({failure.strip().splitlines()[0]})",
            "Its kernels are compiled on this machine.",
            "Use impl='auto' or impl='torch'; `hasten doctor` tells what to mend.",
        )
    return "triton"


@cache
def triton_failure() -> str:
    """Why Triton cannot run a kernel on the CUDA device; empty where it can. Tried once, with the smallest kernel.

    Call it only where there is a CUDA device. A few milliseconds once Triton's own cache has the kernel.

    Raises:
        torch.OutOfMemoryError: the device is full, which says nothing of Triton.
    """
    try:
        import triton

        from hasten.kernels.trial import trial
    except (ImportError, OSError) as cause:
        return _told(cause)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints the whole of what its assembler refused
            right = trial("cuda")
    except torch.OutOfMemoryError:
        raise
    # Its own errors; its C compiler's; a library or a program that is missing or cannot be loaded.
    except (
        triton.TritonError,
        subprocess.SubprocessError,
        ImportError,
        OSError,
        RuntimeError,
        AssertionError,
    ) as cause:
        return _told(cause)
    return "" if right else "its first kernel gave other numbers than torch"


def _told(cause: BaseException) -> str:
    return f"{type(cause).__name__}: {cause}"


def interpreting() -> bool:
    """Whether Triton runs kernels in its interpreter."""
    if not has_triton():
        return False
    import triton

    return bool(triton.knobs.runtime.interpret)  # pyright: ignore[reportAttributeAccessIssue]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums are made in: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)
