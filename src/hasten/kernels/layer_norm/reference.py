"""The specification of layer_norm in plain torch. D width, rows ``[..., D]``."""

from __future__ import annotations

import torch

from hasten.kernels.choice import accumulation_dtype


def layer_norm_fwd(
    x: torch.Tensor,
    weight_D: torch.Tensor,
    bias_D: torch.Tensor | None,
    eps: float,
    residual: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """``y, mean, rstd, h``."""
    h = x if residual is None else (x + residual).to(x.dtype)
    wide = h.to(accumulation_dtype(x.dtype))
    mean = wide.mean(-1)
    centred = wide - mean.unsqueeze(-1)
    rstd = (centred.square().mean(-1) + eps).rsqrt()
    y = centred * rstd.unsqueeze(-1) * weight_D.to(wide.dtype)
    if bias_D is not None:
        y = y + bias_D.to(wide.dtype)
    return y.to(x.dtype), mean, rstd, h


def layer_norm_bwd(
    dy: torch.Tensor,
    h: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    weight_D: torch.Tensor,
    dresidual: torch.Tensor | None,
    need_dw: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """``dh`` with the residual's gradient in it, and ``dw``, ``db`` in the accumulation dtype or None."""
    wide = accumulation_dtype(h.dtype)
    dy_wide, normed = dy.to(wide), (h.to(wide) - mean.unsqueeze(-1)) * rstd.unsqueeze(-1)
    scaled = dy_wide * weight_D.to(wide)
    along = normed * (scaled * normed).mean(-1, keepdim=True)
    dh = rstd.unsqueeze(-1) * (scaled - scaled.mean(-1, keepdim=True) - along)
    if dresidual is not None:
        dh = dh + dresidual.to(wide)
    if not need_dw:
        return dh.to(h.dtype), None, None
    return dh.to(h.dtype), (dy_wide * normed).flatten(0, -2).sum(0), dy_wide.flatten(0, -2).sum(0)
