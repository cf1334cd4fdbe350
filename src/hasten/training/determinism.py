"""Bitwise repeatable arithmetic for the length of a block, through torch's own switch.

For CUDA: on a CPU everything hasten uses is repeatable anyway. The backward of the fused attention kernels adds its
parts in the order in which they arrive. Their ordered variants exist only where torch makes every warning an error,
which in turn demands an environment variable for cuBLAS; so the fused kernels are switched off and plain products used.
Fast layers run that one backward in strict mode themselves (`hasten.blocks.packed_attention.ordered_backward`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_memory: Any = torch.utils.deterministic  # its switch is a property of the module, which type checkers do not see
_FUSED_ATTENTION = {
    torch.backends.cuda.enable_flash_sdp: torch.backends.cuda.flash_sdp_enabled,
    torch.backends.cuda.enable_mem_efficient_sdp: torch.backends.cuda.mem_efficient_sdp_enabled,
    torch.backends.cuda.enable_cudnn_sdp: torch.backends.cuda.cudnn_sdp_enabled,
}


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Ask torch for ordered arithmetic inside the block; its setting is as before afterwards.

    Args:
        wanted: False changes nothing.
    """
    if not wanted:
        yield
        return
    algorithms = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    kernels = {switch: enabled() for switch, enabled in _FUSED_ATTENTION.items()}
    filled = _memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling fresh memory finds reads of what nobody wrote; it costs a launch per tensor and orders nothing.
    _memory.fill_uninitialized_memory = False
    for switch in kernels:
        switch(False)
    try:
        with warnings.catch_warnings():
            # cuBLAS would want an environment variable; with one stream its sums are ordered without it.
            warnings.filterwarnings("ignore", message="(?s).*CuBLAS.*")
            yield
    finally:
        torch.use_deterministic_algorithms(algorithms[0], warn_only=algorithms[1])
        _memory.fill_uninitialized_memory = filled
        for switch, enabled in kernels.items():
            switch(enabled)
