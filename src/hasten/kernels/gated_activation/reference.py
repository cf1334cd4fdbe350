"""The specification of gated_activation in plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional as F  # noqa: N812

from hasten.kernels.choice import accumulation_dtype

SLOPE = math.sqrt(2.0 / math.pi)
CUBIC = 0.044715


_FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


def slope_of(gate: torch.Tensor, kind: str) -> torch.Tensor:
    """``f'(g)``, in the dtype given."""
    if kind == "silu":
        sigma = torch.sigmoid(gate)
        return sigma * (1 + gate * (1 - sigma))
    if kind == "gelu":
        phi = 0.5 * (1 + torch.erf(gate * math.sqrt(0.5)))
        return phi + gate * torch.exp(-0.5 * gate * gate) / math.sqrt(2 * math.pi)
    tanh = torch.tanh(SLOPE * (gate + CUBIC * gate**3))
    return 0.5 * (1 + tanh) + 0.5 * gate * (1 - tanh * tanh) * SLOPE * (1 + 3 * CUBIC * gate * gate)


def forward(gate: torch.Tensor, up: torch.Tensor, kind: str, out: torch.Tensor | None = None) -> torch.Tensor:
    """``f(g) u``, in `out` where that is given."""
    wide = accumulation_dtype(gate.dtype)
    product = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device) if out is None else out
    return torch.mul(_FUNCTIONS[kind](gate.to(wide)), up.to(wide), out=product)


def backward(
    da: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, kind: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``dg, du`` and the product again."""
    wide = accumulation_dtype(gate.dtype)
    value, slope = _FUNCTIONS[kind](gate.to(wide)), slope_of(gate.to(wide), kind)
    da_wide, up_wide = da.to(wide), up.to(wide)
    results = (da_wide * up_wide * slope, da_wide * value, value * up_wide)
    dgate, dup, product = (part.to(gate.dtype) for part in results)
    return dgate, dup, product
