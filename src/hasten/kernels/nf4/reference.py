"""The plain torch twin of nf4."""

from __future__ import annotations

import torch

from hasten.kernels.nf4.packed import Packed


def scales(packed: Packed) -> torch.Tensor:
    """float32, one per block."""
    nested = packed.nested
    if nested is None:
        return packed.absmax
    values = nested.levels[packed.absmax.long()]
    return values * nested.absmax.repeat_interleave(nested.blocksize)[: len(values)] + nested.mean


def dequantize(packed: Packed, out: torch.Tensor, factor_N: torch.Tensor | None = None) -> None:  # noqa: N803
    """Writes the weight to `out` ``[N, K]``, its scales times a factor per row where that is given."""
    codes = packed.codes
    values = packed.levels[torch.stack((codes >> 4, codes & 15), dim=1).view(-1).long()]
    per_value = scales(packed).repeat_interleave(packed.blocksize)[: len(values)]
    if factor_N is not None:
        per_value = per_value * factor_N.repeat_interleave(packed.shape[1])
    out.copy_((values * per_value).view(packed.shape))
