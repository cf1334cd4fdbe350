"""Weights that are kept in 4 or 8 bits, read into a buffer when they are used.

A weight is dequantized once per use (forward, backward, and again where a layer is recomputed), with its group and its
factors' columns, into one buffer that all groups of a model share: whatever is in it is gone at the next group's use.
So they cost a write and a read of the 16-bit weight, and one group's size of memory.

A group may mix such weights with 16-bit ones, as dynamically quantized checkpoints do.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from hasten.kernels.nf4 import op as nf4
from hasten.kernels.nf4.packed import Packed, packed_of
from hasten.kernels.row_scaled import op as row_scaled
from hasten.kernels.row_scaled.rows import RowScaled, row_scaled_of
from hasten.kernels.rows import copy_rows

Stored = Packed | RowScaled | torch.Tensor
"""A weight as it is kept: 4 bits, 8 bits, or itself."""


def stored_of(module: nn.Module) -> Packed | RowScaled | None:
    """The parts of a linear module's weight where it is kept in 4 or 8 bits; None where it is itself, or unknown."""
    packed = packed_of(module.weight)
    return row_scaled_of(module) if packed is None else packed


def device_of(part: Stored) -> torch.device:
    """Where a weight is."""
    return part.device if isinstance(part, torch.Tensor) else part.codes.device


@dataclass(frozen=True)
class Factors:
    """One adapter on one projection: ``y += scale * (x A^T) B^T``."""

    A: nn.Parameter
    B: nn.Parameter
    scale: float
    rows: slice
    """The projection's rows in the group's weight."""
    columns: slice
    """The adapter's columns in the widened part."""


@dataclass
class Workspace:
    """Memory that is written and read, and never kept."""

    _memory: torch.Tensor | None = field(default=None, repr=False)

    def take(self, rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """``[rows, columns]``, unwritten; what was taken before is given up."""
        size = rows * columns
        memory = self._memory
        if memory is None or memory.numel() < size or memory.dtype != dtype or memory.device != device:
            self._memory = None  # the old one is free before the new one is made
            self._memory = memory = torch.empty(size, dtype=dtype, device=device)
        return memory[:size].view(rows, columns)


@dataclass(frozen=True)
class Mixed:
    """A group of weights, of which some or all are kept in 4 or 8 bits."""

    parts: tuple[Stored, ...]
    rows: tuple[slice, ...]
    width: int
    workspace: Workspace
    impl: str = "auto"

    def read(self, widened: int, dtype: torch.dtype, factors: tuple[Factors, ...]) -> torch.Tensor:
        """``[N, K + P]``, valid until the next use of the workspace.

        Args:
            widened: P.
            dtype: of the result.
            factors: whose columns go beside the weights.
        """
        device = device_of(self.parts[0])
        wide_NKP = self.workspace.take(self.rows[-1].stop, self.width + widened, dtype, device)  # noqa: N806
        with torch.no_grad():
            for part, rows in zip(self.parts, self.rows, strict=True):
                own = [each for each in factors if each.rows == rows]
                self._write(part, wide_NKP[rows], own)
        return wide_NKP

    def _write(self, part: Stored, out: torch.Tensor, factors: list[Factors]) -> None:
        if isinstance(part, torch.Tensor):
            copy_rows(out[:, : self.width], part.detach())
            out[:, self.width :] = 0
        else:
            B, start = (factors[0].B.detach(), factors[0].columns.start) if factors else (None, 0)  # noqa: N806
            if isinstance(part, Packed):
                nf4.dequantize(part, out, B=B, start=start, impl=self.impl)
            else:
                row_scaled.dequantize(part, out, B=B, start=start, impl=self.impl)
            factors = factors[1:]
        for each in factors:
            out[:, self.width :][:, each.columns] = each.B
