"""The specification of the row work of linear_cross_entropy in plain torch.

R rows (positions of a chunk), V vocabulary; x are the head's logits and t what the loss is of:
``t = after * cap * tanh(scale * x / cap)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hasten.kernels.choice import accumulation_dtype


@dataclass(frozen=True)
class RowMath:
    """What a row's loss is; see README.md.

    Args:
        ignore_index: the target of positions that do not count.
        scale: factor of the logits before the cap.
        softcap: bound of the logits, or None.
        after: factor after the cap (one over the temperature).
        label_smoothing: ε.
        z_loss: ζ.
    """

    ignore_index: int = -100
    scale: float = 1.0
    softcap: float | None = None
    after: float = 1.0
    label_smoothing: float = 0.0
    z_loss: float = 0.0


def rows_loss(
    x_RV: torch.Tensor,
    target_R: torch.Tensor,
    math: RowMath,
    *,
    gradient: bool,
    upstream_R: torch.Tensor | None = None,
) -> torch.Tensor:
    """Losses per row, in the accumulation dtype; with `gradient`, dloss/dx is written over x."""
    wide = accumulation_dtype(x_RV.dtype)
    t, slope = x_RV.to(wide) * math.scale, math.scale * math.after
    if math.softcap is not None:
        ratio = torch.tanh(t / math.softcap)
        t, slope = math.softcap * ratio, slope * (1.0 - ratio * ratio)
    t = t * math.after
    log_p = torch.log_softmax(t, -1)
    ignored = target_R == math.ignore_index
    unknown = ~ignored & ((target_R < 0) | (target_R >= x_RV.shape[1]))
    place = torch.where(ignored | unknown, 0, target_R).unsqueeze(-1)
    smooth, loss, times = math.label_smoothing, -log_p.gather(1, place).squeeze(-1), None
    if smooth:
        loss = (1.0 - smooth) * loss - smooth * log_p.mean(-1)
    if math.z_loss:
        lse = torch.logsumexp(t, -1)
        loss, times = loss + math.z_loss * lse * lse, (1.0 + 2.0 * math.z_loss * lse).unsqueeze(-1)
    if gradient:
        dt = log_p.exp_() if times is None else log_p.exp_() * times
        dt -= smooth / x_RV.shape[1]
        dt.scatter_(1, place, dt.gather(1, place) - (1.0 - smooth))
        dx = dt * slope if upstream_R is None else dt * slope * upstream_R.to(wide).unsqueeze(-1)
        dx.masked_fill_(ignored.unsqueeze(-1), 0.0).masked_fill_(unknown.unsqueeze(-1), float("nan"))
        x_RV.copy_(dx)
    return loss.masked_fill(ignored, 0.0).masked_fill(unknown, float("nan"))
