"""The specification of rms_norm in plain torch. D width, rows ``[..., D]``."""

from __future__ import annotations

import torch

from hasten.kernels.choice import accumulation_dtype


def rms_norm_fwd(
    x: torch.Tensor,
    weight_D: torch.Tensor,
    eps: float,
    plus_one: bool,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``y, rstd, h``."""
    h = x if residual is None else (x + residual).to(x.dtype)
    wide = h.to(accumulation_dtype(x.dtype))
    rstd = (wide.square().mean(-1) + eps).rsqrt()
    weight = weight_D.to(wide.dtype) + (1.0 if plus_one else 0.0)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    return torch.mul(wide * rstd.unsqueeze(-1), weight, out=y), rstd, h


def rms_norm_bwd(
    dy: torch.Tensor,
    h: torch.Tensor,
    rstd: torch.Tensor,
    weight_D: torch.Tensor,
    plus_one: bool,
    dresidual: torch.Tensor | None,
    need_dw: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``dh`` with the residual's gradient in it, and ``dw`` in the accumulation dtype or None."""
    wide = accumulation_dtype(h.dtype)
    dy_wide, normed = dy.to(wide), h.to(wide) * rstd.unsqueeze(-1)
    scaled = dy_wide * (weight_D.to(wide) + (1.0 if plus_one else 0.0))
    dh = rstd.unsqueeze(-1) * (scaled - normed * (scaled * normed).mean(-1, keepdim=True))
    if dresidual is not None:
        dh = dh + dresidual.to(wide)
    dw = (dy_wide * normed).flatten(0, -2).sum(0) if need_dw else None
    return dh.to(h.dtype), dw
