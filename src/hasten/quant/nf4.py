"""A weight in bitsandbytes' NF4 format with double quantization, taken apart and put together.

A weight ``[N, K]`` is read row by row in blocks of 64 values (or 32: the size is stored with each weight). A value is
stored as the number (0 to 15) of a level; it stands for ``level x scale``, where a block's scale is by default its
largest magnitude (bitsandbytes calls it absmax). The scales are stored in 8 bit themselves, 256 at a time, as
differences from their mean. The levels are those of QLoRA (Dettmers et al. 2023, arXiv:2305.14314, section 3).

Whoever chooses codes and scales otherwise than by rounding to the nearest, changes neither the format nor its bytes.
Codes are always chosen for the scales as they come back from their 8 bits, so that nothing is lost afterwards.

Shapes: N outputs, K inputs, B blocks in a row.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from functools import cache
from math import ceil
from typing import TYPE_CHECKING, Any

import torch

from hasten.kernels.compensated_rounding.reference import nearest

if TYPE_CHECKING:
    from bitsandbytes.functional import QuantState

BLOCK = 64
"""Values that share a scale, as everybody has it."""
SMALL_BLOCK = 32
"""The smallest that bitsandbytes reads: nearer to the original, and 3 % more bytes."""
SCALE_BLOCK = 256
"""Scales that share a scale of their own."""
_LEVELS, _SCALE_LEVELS = 16, 256


@dataclass(frozen=True)
class Scales:
    """The scales of one weight, as they are stored."""

    codes: torch.Tensor
    """uint8 ``[N * B]``."""
    state: Any
    """bitsandbytes' state of their own quantization: one scale for 256 codes, and the 256 levels."""
    offset: torch.Tensor
    """Their mean, a float32 scalar."""
    shape: tuple[int, int]
    """``(N, B)``."""

    def values(self) -> torch.Tensor:
        """float32 ``[N, B]``: what a reader gets."""
        from bitsandbytes.functional import dequantize_blockwise

        return (dequantize_blockwise(self.codes, self.state) + self.offset).view(self.shape)

    def to(self, device: torch.device | str) -> Scales:
        """The same on another device."""
        state = copy(self.state)
        state.to(device)
        return Scales(self.codes.to(device), state, self.offset.to(device), self.shape)


@dataclass(frozen=True)
class Nf4:
    """One weight, as it is stored."""

    codes_NK: torch.Tensor
    """uint8 ``[N, K]``, 0 to 15."""
    scales: Scales

    def values(self) -> torch.Tensor:
        """float32 ``[N, K]``: what a reader gets."""
        values = levels(self.codes_NK.device)[self.codes_NK.long()].view(*self.scales.shape, self.block)
        return (values * self.scales.values()[:, :, None]).view(self.codes_NK.shape)

    def to(self, device: torch.device | str) -> Nf4:
        """The same on another device."""
        return Nf4(self.codes_NK.to(device), self.scales.to(device))

    @property
    def block(self) -> int:
        """Values that share a scale."""
        return self.codes_NK.shape[1] // self.scales.shape[1]

    def packed(self) -> torch.Tensor:
        """uint8 ``[N * K / 2, 1]``: two codes to a byte, the first in the upper half."""
        flat = self.codes_NK.flatten()
        return (flat[::2] << 4 | flat[1::2])[:, None]

    def state(self, dtype: torch.dtype) -> QuantState:
        """bitsandbytes' description of the weight; a reader gets values of that dtype."""
        from bitsandbytes.functional import QuantState

        return QuantState(
            absmax=self.scales.codes,
            shape=self.codes_NK.shape,
            code=levels(self.codes_NK.device).clone(),
            blocksize=self.block,
            quant_type="nf4",
            dtype=dtype,
            offset=self.scales.offset,
            state2=self.scales.state,
        )


@cache
def levels(device: torch.device) -> torch.Tensor:
    """The sixteen levels, float32, ascending from -1 to 1."""
    from bitsandbytes.functional import get_4bit_type

    return get_4bit_type("nf4", device=device, blocksize=BLOCK)


@cache
def borders(device: torch.device) -> torch.Tensor:
    """Halfway between neighbouring levels, as bitsandbytes has them."""
    ascending = levels(device)
    return (ascending[:-1] + ascending[1:]) / 2


def fits(shape: tuple[int, ...]) -> bool:
    """Whether blocks end where rows end; bitsandbytes would let a block run on into the next row."""
    return len(shape) == 2 and shape[1] % BLOCK == 0


def largest(weight_NK: torch.Tensor, block: int = BLOCK) -> torch.Tensor:
    """The scales that bitsandbytes takes: the largest magnitude of each block, ``[N, B]``."""
    return weight_NK.float().view(len(weight_NK), -1, block).abs().amax(-1)


def stored_scales(scales_NB: torch.Tensor) -> Scales:
    """Scales in their 8 bits."""
    from bitsandbytes.functional import quantize_blockwise

    flat = scales_NB.flatten()
    offset = flat.mean()
    codes, state = quantize_blockwise(flat - offset, blocksize=SCALE_BLOCK)
    return Scales(codes, state, offset, (scales_NB.shape[0], scales_NB.shape[1]))


def nearest_codes(values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The nearest level of each value, uint8; the scales are broadcast."""
    return nearest(values, scales, borders(values.device))


def plain(weight_NK: torch.Tensor, block: int = BLOCK) -> Nf4:
    """As bitsandbytes quantizes, bit by bit: codes for the scales before they are quantized."""
    scales_NB = largest(weight_NK, block)
    blocks = weight_NK.float().view(*scales_NB.shape, block)
    return Nf4(nearest_codes(blocks, scales_NB[:, :, None]).view(weight_NK.shape), stored_scales(scales_NB))


def stored_bytes(shape: tuple[int, int], block: int = BLOCK) -> int:
    """Bytes of the five tensors that a checkpoint holds for one weight ``(N, K)``: codes, scales, their scales, levels.

    The sixth, some 170 characters that name shape and type, is not counted.
    """
    values = shape[0] * shape[1]
    scales = values // block
    return values // 2 + scales + 4 * ceil(scales / SCALE_BLOCK) + 4 * _LEVELS + 4 * _SCALE_LEVELS
