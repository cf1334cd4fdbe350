"""The specification of row_scaled in plain torch."""

from __future__ import annotations

import torch

from hasten.kernels.row_scaled.rows import RowScaled


def dequantize(weight: RowScaled, out: torch.Tensor) -> None:
    """Writes the values ``[N, K]``."""
    codes = weight.as_floats() if weight.floats else weight.codes
    out.copy_(codes.float() * weight.scales())
