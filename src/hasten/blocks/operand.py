"""A group of projections as one forward reads it: forward, input gradient and parameter gradients of one product.

Shapes: M positions, K input width, N output width of the whole group, P widened columns (0 without adapters).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from hasten.blocks.quantized import Factors, Mixed

Eight = tuple[torch.Tensor, torch.Tensor]
"""Rows in 8 bits and their scales, as `hasten.kernels.fp8` makes them."""


@dataclass
class Operand:
    """A group as one forward reads it."""

    stored: torch.Tensor | Mixed
    """``[N, K + P]``: weight and B of all adapters, or what they are made from at every use."""
    dtype: torch.dtype
    """What is computed in."""
    widened: int
    """P."""
    A_PK: torch.Tensor | None
    """``[P, K]``: A of all adapters times their scale, zero where there is none; None where P is 0."""
    bias_N: torch.Tensor | None
    width: int
    factors: tuple[Factors, ...]
    weights: tuple[nn.Parameter, ...]
    biases: tuple[nn.Parameter | None, ...]
    rows: tuple[slice, ...]

    def weight_NKP(self) -> torch.Tensor:  # noqa: N802
        """``[N, K + P]``: weight and B of all adapters; of 4-bit weights valid until any group's next use."""
        if isinstance(self.stored, torch.Tensor):
            return self.stored
        return self.stored.read(self.widened, self.dtype, self.factors)

    @property
    def B_NP(self) -> torch.Tensor | None:  # noqa: N802
        """``[N, P]``, where B of all adapters is kept; None where it is written with the weight at every use."""
        return self.stored[:, self.width :] if isinstance(self.stored, torch.Tensor) and self.widened else None

    def cast(self, dtype: torch.dtype) -> Operand:
        """The same, computed in another dtype."""
        stored = self.stored.to(dtype) if isinstance(self.stored, torch.Tensor) else self.stored
        return replace(self, stored=stored, dtype=dtype, A_PK=None if self.A_PK is None else self.A_PK.to(dtype))

    @cached_property
    def occupied(self) -> int:
        """Columns that hold factors, rounded up to a power of two (at least 16) as far as there are columns."""
        used = self.factors[-1].columns.stop if self.factors else 0
        return min(self.widened, max(16, 1 << (used - 1).bit_length())) if used else 0

    @cached_property
    def learnt(self) -> list[torch.Tensor]:
        """Every parameter whose gradient `parameter_gradients` gives, in its order."""
        found: list[torch.Tensor] = [*self.weights, *(bias for bias in self.biases if bias is not None)]
        for factors in self.factors:
            found += [factors.A, factors.B]
        return found

    def input_buffer(self, rows: int, like: torch.Tensor) -> torch.Tensor:
        """``[M, K + P]``, unwritten: whoever makes the input writes the first K columns."""
        return torch.empty((rows, self.width + self.widened), dtype=self.dtype, device=like.device)

    def without_gradients(self) -> Operand:
        """The same, for a forward that nothing is learnt from."""
        return self

    def new_eight(self, rows: int, like: torch.Tensor) -> Eight | None:
        """Where whoever makes the input writes it in 8 bits, ``[M, K]`` and its scales; None: not wanted."""
        return None

    def forward(self, x_MKP: torch.Tensor, eight: Eight | None = None) -> torch.Tensor:
        """``y [M, N]``; the last P columns of the input are written here.

        Args:
            x_MKP: the input.
            eight: its first K columns in 8 bits, from `new_eight`.
        """
        if self.A_PK is not None:
            torch.mm(x_MKP[:, : self.width], self.A_PK.t(), out=x_MKP[:, self.width :])
        return F.linear(x_MKP, self.weight_NKP(), self.bias_N)

    def input_gradient(self, dy_MN: torch.Tensor, *, need_dx: bool = True) -> tuple[torch.Tensor | None, torch.Tensor]:
        """``dx [M, K]`` (a view of a wider buffer, or None) and ``dxA [M, P]``."""
        if not need_dx:
            return None, dy_MN @ self.weight_NKP()[:, self.width :]
        dx_MK, dxa_MP = self.parts_of_input_gradient(dy_MN)
        if self.A_PK is not None:
            dx_MK.addmm_(dxa_MP, self.A_PK)
        return dx_MK, dxa_MP

    def parts_of_input_gradient(self, dy_MN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``dx' [M, K]`` and ``dxA [M, P]``, views of one buffer; ``dx = dx' + dxA A`` is left to the caller."""
        wide_MKP = dy_MN @ self.weight_NKP()
        return wide_MKP[:, : self.width], wide_MKP[:, self.width :]

    def parameter_gradients(
        self, dy_MN: torch.Tensor, x_MK: torch.Tensor, xa_MP: torch.Tensor, dxa_MP: torch.Tensor
    ) -> list[torch.Tensor | None]:
        """Gradients of `learnt`, None for what is frozen.

        Args:
            dy_MN: gradient of the output.
            x_MK: the input.
            xa_MP: the widened part of the input.
            dxa_MP: its gradient, from `input_gradient`.
        """
        gradients: list[torch.Tensor | None] = []
        if all(weight.requires_grad for weight in self.weights):
            dW_NK = dy_MN.t() @ x_MK  # one product, whose rows are the gradients  # noqa: N806
            gradients += [dW_NK[rows].to(weight.dtype) for weight, rows in zip(self.weights, self.rows, strict=True)]
        else:
            for weight, rows in zip(self.weights, self.rows, strict=True):
                gradients.append((dy_MN[:, rows].t() @ x_MK).to(weight.dtype) if weight.requires_grad else None)
        for bias, rows in zip(self.biases, self.rows, strict=True):
            if bias is not None:
                wide = torch.promote_types(dy_MN.dtype, torch.float32)
                summed = dy_MN[:, rows].sum(0, dtype=wide) if bias.requires_grad else None
                gradients.append(None if summed is None else summed.to(bias.dtype))
        if not self.factors:
            return gradients
        used = self.factors[-1].columns.stop
        dA_PK = product(dxa_MP[:, :used].t(), x_MK)
        dB_NP = product(dy_MN.t(), xa_MP[:, :used])
        for part in self.factors:
            dA, dB = dA_PK[part.columns], dB_NP[part.rows, part.columns]
            dA = dA if part.scale == 1.0 else dA * part.scale
            gradients.append(dA.to(part.A.dtype) if part.A.requires_grad else None)
            gradients.append(dB.to(part.B.dtype).contiguous() if part.B.requires_grad else None)
        return gradients


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """A matrix product of 16-bit values in float32, not rounded on the way."""
    if left.dtype in (torch.float32, torch.float64):
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()
