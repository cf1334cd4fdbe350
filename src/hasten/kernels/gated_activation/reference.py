"""The specification of gated_activation in plain torch."""

from __future__ import annotations

import math

import torch

from hasten.kernels.choice import accumulation_dtype

SLOPE = math.sqrt(2.0 / math.pi)
CUBIC = 0.044715


def value_and_slope(gate: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """``f(g)`` and ``f'(g)``, in the dtype given."""
    if kind == "silu":
        sigma = torch.sigmoid(gate)
        return gate * sigma, sigma * (1 + gate * (1 - sigma))
    if kind == "gelu":
        phi = 0.5 * (1 + torch.erf(gate * math.sqrt(0.5)))
        return gate * phi, phi + gate * torch.exp(-0.5 * gate * gate) / math.sqrt(2 * math.pi)
    tanh = torch.tanh(SLOPE * (gate + CUBIC * gate**3))
    half = 0.5 * (1 + tanh)
    return gate * half, half + 0.5 * gate * (1 - tanh * tanh) * SLOPE * (1 + 3 * CUBIC * gate * gate)


def forward(gate: torch.Tensor, up: torch.Tensor, kind: str) -> torch.Tensor:
    """``f(g) u``."""
    wide = accumulation_dtype(gate.dtype)
    return (value_and_slope(gate.to(wide), kind)[0] * up.to(wide)).to(gate.dtype)


def backward(
    da: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, kind: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``dg, du`` and the product again."""
    wide = accumulation_dtype(gate.dtype)
    value, slope = value_and_slope(gate.to(wide), kind)
    da_wide, up_wide = da.to(wide), up.to(wide)
    results = (da_wide * up_wide * slope, da_wide * value, value * up_wide)
    dgate, dup, product = (part.to(gate.dtype) for part in results)
    return dgate, dup, product
