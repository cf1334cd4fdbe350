"""A 4-bit weight as its parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Nested:
    """Scales in 8 bits."""

    absmax: torch.Tensor
    """float32, one per block of scales."""
    levels: torch.Tensor
    """float32 ``[256]``."""
    mean: torch.Tensor
    """float32, no dimensions; added to every scale."""
    blocksize: int


@dataclass(frozen=True)
class Packed:
    """One weight ``[N, K]``; the tensors are bitsandbytes' own."""

    codes: torch.Tensor
    """uint8 ``[N K / 2]``, the earlier value in the high half."""
    absmax: torch.Tensor
    """float32, one per block; uint8 where scales are nested."""
    levels: torch.Tensor
    """float32 ``[16]``."""
    shape: tuple[int, int]
    blocksize: int
    dtype: torch.dtype
    """What the weight had before."""
    nested: Nested | None


def packed_of(weight: Any) -> Packed | None:
    """The parts of a bitsandbytes `Params4bit` in NF4; None for any other parameter, or one in another layout."""
    state = getattr(weight, "quant_state", None)
    if state is None or getattr(state, "quant_type", None) != "nf4" or len(state.shape) != 2:
        return None
    rows, columns = state.shape
    repacked = getattr(state, "packing_format_for_cpu", False)  # for evaluation on some processors
    if repacked or weight.dtype != torch.uint8 or 2 * weight.numel() != rows * columns:
        return None
    nested = None
    if state.nested:
        second = state.state2
        nested = Nested(second.absmax, second.code, state.offset, second.blocksize)
    return Packed(
        codes=weight.data.view(-1),
        absmax=state.absmax,
        levels=state.code,
        shape=(rows, columns),
        blocksize=state.blocksize,
        dtype=state.dtype,
        nested=nested,
    )
