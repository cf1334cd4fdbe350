"""Bitwise repeatable arithmetic for the length of a block, through torch's own switch.

On a CPU everything hasten uses is repeatable anyway. On CUDA the backward of attention adds its parts in the order in
which they arrive, unless torch is told to take its slower, ordered way.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Ask torch for ordered arithmetic inside the block; its setting is as before afterwards.

    Args:
        wanted: False changes nothing.
    """
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cuda.cudnn_sdp_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cuda.enable_cudnn_sdp(False)  # its backward is not ordered unless a warning would be an error
    try:
        with warnings.catch_warnings():
            # cuBLAS would want an environment variable; with one stream its sums are ordered without it.
            warnings.filterwarnings("ignore", message="(?s).*CuBLAS.*")
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
