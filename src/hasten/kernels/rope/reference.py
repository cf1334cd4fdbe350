"""The specification of rope in plain torch. M rows, H heads, D head width, R rotary width, C rows of angles (C | M)."""

from __future__ import annotations

import torch

from hasten.kernels.choice import accumulation_dtype


def rotate(
    x_MHD: torch.Tensor, cos_CR: torch.Tensor, sin_CR: torch.Tensor, backward: bool, interleaved: bool
) -> torch.Tensor:
    """The rows turned; a new tensor."""
    wide, width = accumulation_dtype(x_MHD.dtype), cos_CR.shape[-1]
    times = x_MHD.shape[0] // max(cos_CR.shape[0], 1)
    cos, sin = (table[:, : width // 2].to(wide).repeat(times, 1).unsqueeze(1) for table in (cos_CR, sin_CR))
    sin = -sin if backward else sin
    turned, rest = x_MHD[..., :width].to(wide), x_MHD[..., width:]
    if interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
        pairs = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1).flatten(-2)
    else:
        first, second = turned.chunk(2, dim=-1)
        pairs = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return torch.cat((pairs.to(x_MHD.dtype), rest), dim=-1)
