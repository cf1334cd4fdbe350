"""The specification of scaled_copies in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def run(copies: Sequence[tuple[torch.Tensor, torch.Tensor, float]]) -> None:
    """Every target becomes its source times its factor."""
    for source, target, factor in copies:
        torch.mul(source, factor, out=target)
