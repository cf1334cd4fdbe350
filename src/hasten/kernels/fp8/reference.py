"""The specification of fp8 in plain torch."""

from __future__ import annotations

import torch

LARGEST = 448.0
SMALLEST_SCALE = 1e-30
"""Of a row of zeros: its reciprocal is a float32."""


def quantize_rows(x_MK: torch.Tensor, factor_K: torch.Tensor | None, out: torch.Tensor, scale_M1: torch.Tensor) -> None:
    """Writes ``x · factor`` in 8 bits, and each row's scale."""
    values = x_MK.float()
    if factor_K is not None:
        values = values * factor_K
    largest = values.abs().amax(1, keepdim=True)
    # By a tensor: torch multiplies with a plain number's reciprocal instead, which rounds otherwise.
    scale = (largest / torch.full_like(largest, LARGEST)).clamp_min(SMALLEST_SCALE)
    scale_M1.copy_(scale)
    out.copy_((values * (1.0 / scale)).to(torch.float8_e4m3fn))


def product(
    x8_MK: torch.Tensor, x_scale_M1: torch.Tensor, w8_NK: torch.Tensor, w_scale_N: torch.Tensor
) -> torch.Tensor:
    """float32 ``[M, N]``."""
    return (x8_MK.float() @ w8_NK.float().t()) * x_scale_M1 * w_scale_N
