"""A weight in 8 bits as its parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class RowScaled:
    """One weight ``[N, K]``."""

    codes: torch.Tensor
    """``[N, K]``: int8, or uint8 for the bits of e4m3 floats."""
    scale: torch.Tensor
    """float32 ``[N]``; of blocks one each, ``[ceil(N / rows), ceil(K / columns)]``."""
    dtype: torch.dtype
    """What it is computed in, where nobody says otherwise."""
    blocks: tuple[int, int] | None = None
    """Rows and columns that share a scale; None: a row."""

    @property
    def shape(self) -> torch.Size:
        """``[N, K]``."""
        return self.codes.shape

    @property
    def floats(self) -> bool:
        """Whether codes are e4m3 floats."""
        return self.codes.dtype == torch.uint8

    def scales(self) -> torch.Tensor:
        """float32, one per value or per row: what the codes ``[N, K]`` are multiplied with."""
        if self.blocks is None:
            return self.scale[:, None]
        rows, columns = self.blocks
        wide = self.scale.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        return wide[: self.shape[0], : self.shape[1]]

    def as_floats(self) -> torch.Tensor:
        """The codes as float8_e4m3fn ``[N, K]``, where they are."""
        return self.codes.view(torch.float8_e4m3fn)


def row_scaled_of(module: Any) -> RowScaled | None:
    """The parts of an 8-bit linear module; None for any other.

    Args:
        module: bitsandbytes' `Linear8bitLt` (with the `compute_dtype` that loading gives it), or one with a uint8
            weight ``[N, K]``, a ``weight_scale`` and `blocks` (see `RowScaled`).
    """
    weight: Any = module._parameters.get("weight")  # its own: an adapter on it shows the same one
    if not isinstance(weight, torch.Tensor) or weight.ndim != 2:
        return None
    if weight.dtype == torch.uint8 and hasattr(module, "weight_scale"):
        scale = module.weight_scale if module.blocks else module.weight_scale.view(-1)
        return RowScaled(weight.data, scale, module.compute_dtype, module.blocks)
    if weight.dtype != torch.int8 or not hasattr(weight, "SCB"):
        return None
    theirs: Any = weight
    absmax = theirs.SCB if theirs.SCB is not None else module.state.SCB  # where it is after a forward of its own
    if absmax is None:
        return None
    scale = absmax.to(weight.device, torch.float32).view(-1) / 127.0  # it does not follow a module that is moved
    known = getattr(module, "compute_dtype", torch.float32 if weight.is_cpu else torch.bfloat16)
    return RowScaled(weight.data, scale, known)
