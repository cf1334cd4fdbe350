"""The plain torch twin of compensated_rounding."""

from __future__ import annotations

import torch


def nearest(values: torch.Tensor, scales: torch.Tensor, borders: torch.Tensor) -> torch.Tensor:
    """The nearest level of each value, uint8; the scales are broadcast."""
    # A multiplication, as in bitsandbytes: a division would round some ties the other way.
    relative = values.float() * (1.0 / scales.clamp(min=1e-38))
    return torch.bucketize(relative.clamp(-1, 1), borders, out_int32=True).to(torch.uint8)


def round_group(
    free_NG: torch.Tensor,
    scales_NG: torch.Tensor,
    upper_GG: torch.Tensor,
    levels: torch.Tensor,
    borders: torch.Tensor,
    codes_NG: torch.Tensor,
    errors_NG: torch.Tensor,
) -> None:
    """See `op.round_group`."""
    free_NG = free_NG.clone()
    for j in range(free_NG.shape[1]):
        codes = nearest(free_NG[:, j], scales_NG[:, j], borders)
        error = (free_NG[:, j] - levels[codes.long()] * scales_NG[:, j]) / upper_GG[j, j]
        codes_NG[:, j], errors_NG[:, j] = codes, error
        free_NG[:, j + 1 :].addr_(error, upper_GG[j, j + 1 :], alpha=-1)
