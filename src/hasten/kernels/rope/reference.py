"""The specification of rope in plain torch. M rows, H heads, D head width, R rotary width, C rows of angles (C | M)."""

from __future__ import annotations

import torch

from hasten.kernels.choice import accumulation_dtype


def rotate(
    x_MHD: torch.Tensor,
    cos_CR: torch.Tensor,
    sin_CR: torch.Tensor,
    out_MHD: torch.Tensor,
    backward: bool,
    interleaved: bool,
) -> torch.Tensor:
    """Writes the turned rows to `out_MHD`, which may be `x_MHD` itself."""
    wide, width = accumulation_dtype(x_MHD.dtype), cos_CR.shape[-1]
    times = x_MHD.shape[0] // max(cos_CR.shape[0], 1)
    cos, sin = (table[:, : width // 2].to(wide) for table in (cos_CR, sin_CR))
    if times > 1:
        cos, sin = cos.repeat(times, 1), sin.repeat(times, 1)
    cos, sin = cos.unsqueeze(1), (-sin if backward else sin).unsqueeze(1)
    if interleaved:
        places = slice(0, width, 2), slice(1, width, 2)
    else:
        places = slice(0, width // 2), slice(width // 2, width)
    first, second = (x_MHD[..., place].to(wide) for place in places)
    turned = first * cos - second * sin, second * cos + first * sin
    for place, values in zip(places, turned, strict=True):
        out_MHD[..., place] = values.to(x_MHD.dtype)
    if out_MHD.data_ptr() != x_MHD.data_ptr():
        out_MHD[..., width:] = x_MHD[..., width:]
    return out_MHD
