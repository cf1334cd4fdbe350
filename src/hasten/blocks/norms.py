"""A norm as blocks read it: the model's own weight and the family's arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from hasten.kernels.rms_norm import op as rms_norm


@dataclass(frozen=True)
class Norm:
    """Root mean square norm of a module that has ``weight`` and an epsilon.

    Args:
        module: the model's norm.
        plus_one: its scale is the weight plus one.
        impl: which kernels run.
    """

    module: nn.Module
    plus_one: bool = False
    impl: str = "auto"

    @property
    def weight(self) -> nn.Parameter:
        """The scale per column, the model's own parameter."""
        return self.module.weight  # type: ignore[return-value]

    @property
    def eps(self) -> float:
        """What is added to the mean square."""
        found = getattr(self.module, "variance_epsilon", None)
        return float(found if found is not None else self.module.eps)  # type: ignore[arg-type]

    def forward(
        self, x: torch.Tensor, out: torch.Tensor, eight: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Writes the normalised rows to `out`, and in 8 bits to `eight`; returns ``rstd``."""
        scale = self.weight.detach()
        return rms_norm.forward(x, scale, self.eps, self.plus_one, out=out, eight=eight, impl=self.impl)[1]

    def backward(
        self, dy: torch.Tensor, x: torch.Tensor, rstd: torch.Tensor, dresidual: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """``dx`` with the residual's gradient in it, and the weight's gradient or None."""
        weight = self.weight
        dx, dw = rms_norm.backward(
            dy,
            x,
            rstd,
            weight.detach(),
            self.plus_one,
            dresidual=dresidual,
            need_dw=weight.requires_grad,
            impl=self.impl,
        )
        return dx, None if dw is None else dw.to(weight.dtype)
