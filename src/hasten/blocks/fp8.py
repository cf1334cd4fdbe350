"""Projections whose products are made in 8-bit floats (`hasten.kernels.fp8`).

The weights stay what they are; their 8-bit form is made once (16-bit weights), written into a shared buffer at every
use (4-bit ones), or what they are kept in already (8-bit floats). Adapters stay in 16 bits, beside the product instead
of inside it:

    y = x8 W8^T s_x s_W + xA B^T        dx = z8 W8 s_z + dxA (s A)  with  z = dy s_W        dxA = dy B

W8 is read by rows forward and turned round backward; the turned copy is kept or made at every use. Of weights that are
trained it is made anew in every forward and kept until its backward; their own gradient stays a 16-bit product.

Only what is learnt from is computed so. Without gradients (held-out loss, answers) the weights are read as they are
kept: what is measured is the model that the run leaves behind.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from functools import cached_property

import torch

from hasten.blocks.operand import Eight, Operand
from hasten.blocks.quantized import Stored, Workspace, device_of
from hasten.kernels.fp8 import op as fp8
from hasten.kernels.nf4.op import dequantize, to_fp8
from hasten.kernels.nf4.packed import Packed
from hasten.kernels.row_scaled.rows import RowScaled


@dataclass(frozen=True)
class Weights8:
    """A group's weights in 8 bits, with one scale per output."""

    scale_N: torch.Tensor
    inverse_N: torch.Tensor
    """One over each scale."""
    ones_K: torch.Tensor
    parts: tuple[Packed | torch.Tensor, ...]
    """Of each projection: the packed weight, or its 8-bit rows."""
    rows: tuple[slice, ...]
    turned_KN: torch.Tensor | None
    workspace: Workspace
    impl: str

    def by_rows(self) -> torch.Tensor:
        """``[N, K]``; of 4-bit weights valid until the workspace's next use."""
        if len(self.parts) == 1 and isinstance(self.parts[0], torch.Tensor):
            return self.parts[0]
        shape = len(self.scale_N), len(self.ones_K)
        out_NK = self.workspace.take(*shape, fp8.DTYPE, self.scale_N.device)  # noqa: N806
        for part, own in zip(self.parts, self.rows, strict=True):
            if isinstance(part, Packed):
                to_fp8(part, self.inverse_N[own], out_NK[own], impl=self.impl)
            else:
                out_NK[own].view(torch.uint8).copy_(part.view(torch.uint8))
        return out_NK

    def turned(self) -> torch.Tensor:
        """``[K, N]``, valid as above."""
        if self.turned_KN is not None:
            return self.turned_KN
        shape = len(self.ones_K), len(self.scale_N)
        out_KN = self.workspace.take(*shape, fp8.DTYPE, self.scale_N.device)  # noqa: N806
        for part, own in zip(self.parts, self.rows, strict=True):
            if isinstance(part, Packed):
                to_fp8(part, self.inverse_N[own], out_KN[:, own], turned=True, impl=self.impl)
            else:
                fp8.transpose(part, out_KN[:, own], impl=self.impl)
        return out_KN


@dataclass(frozen=True)
class Trained8:
    """A group's trained weights in 8 bits, as they are in one forward; made when they are first asked for."""

    weight_NK: torch.Tensor
    workspace: Workspace
    ones_K: torch.Tensor
    impl: str

    @cached_property
    def _codes(self) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            return fp8.quantize_rows(self.weight_NK.detach(), impl=self.impl)

    @property
    def scale_N(self) -> torch.Tensor:  # noqa: N802
        """Of each output."""
        return self._codes[1][:, 0]

    def by_rows(self) -> torch.Tensor:
        """``[N, K]``."""
        return self._codes[0]

    def turned(self) -> torch.Tensor:
        """``[K, N]``, valid until the workspace's next use."""
        outputs, width = self.weight_NK.shape
        out_KN = self.workspace.take(width, outputs, fp8.DTYPE, self.weight_NK.device)  # noqa: N806
        return fp8.transpose(self.by_rows(), out_KN, impl=self.impl)

    def anew(self) -> Trained8:
        """For the next forward."""
        return Trained8(self.weight_NK, self.workspace, self.ones_K, self.impl)


@dataclass
class Operand8(Operand):
    """A group as one forward reads it, in 8 bits; `stored` is the group as it is kept."""

    weights8: Weights8 | Trained8 = field(kw_only=True)
    kept_B: torch.Tensor | None = field(kw_only=True)
    """``[N, P]``."""

    @property
    def B_NP(self) -> torch.Tensor | None:  # noqa: N802
        """``[N, P]``: B of all adapters."""
        return self.kept_B

    def cast(self, dtype: torch.dtype) -> Operand8:
        """The same, computed in another dtype."""
        A, B = (None if part is None else part.to(dtype) for part in (self.A_PK, self.kept_B))  # noqa: N806
        return replace(self, dtype=dtype, A_PK=A, kept_B=B)

    def without_gradients(self) -> Operand:
        """The group with its weights as they are kept."""
        plain = Operand(**{each.name: getattr(self, each.name) for each in fields(Operand)})
        if isinstance(plain.stored, torch.Tensor) and plain.stored.dtype != self.dtype:
            plain.stored = plain.stored.to(self.dtype)
        return plain

    def new_eight(self, rows: int, like: torch.Tensor) -> Eight | None:
        """Where whoever makes the input writes it in 8 bits."""
        return fp8.new_rows(rows, self.width, like.device)

    def forward(self, x_MKP: torch.Tensor, eight: Eight | None = None) -> torch.Tensor:
        """``y [M, N]``; see `Operand.forward`."""
        own = self.weights8
        x8_MK, scale_M1 = fp8.quantize_rows(x_MKP[:, : self.width], impl=own.impl) if eight is None else eight
        y_MN = fp8.product(x8_MK, scale_M1, own.by_rows(), own.scale_N, dtype=self.dtype)
        if self.bias_N is not None:
            y_MN += self.bias_N
        if self.A_PK is not None and self.kept_B is not None:
            torch.mm(x_MKP[:, : self.width], self.A_PK.t(), out=x_MKP[:, self.width :])
            used = self.occupied
            y_MN.addmm_(x_MKP[:, self.width : self.width + used], self.kept_B[:, :used].t())
        return y_MN

    def input_gradient(self, dy_MN: torch.Tensor, *, need_dx: bool = True) -> tuple[torch.Tensor | None, torch.Tensor]:
        """See `Operand.input_gradient`."""
        return super().input_gradient(dy_MN) if need_dx else (None, self._widened_gradient(dy_MN))

    def parts_of_input_gradient(self, dy_MN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Operand.parts_of_input_gradient`; two buffers here."""
        own = self.weights8
        z8_MN, scale_M1 = fp8.quantize_rows(dy_MN, own.scale_N, impl=own.impl)
        dx_MK = fp8.product(z8_MN, scale_M1, own.turned(), own.ones_K, dtype=self.dtype)
        return dx_MK, self._widened_gradient(dy_MN)

    def _widened_gradient(self, dy_MN: torch.Tensor) -> torch.Tensor:
        return dy_MN.new_empty((len(dy_MN), 0)) if self.kept_B is None else dy_MN @ self.kept_B


def refusal(parts: tuple[Stored, ...], *, adapted: bool) -> str | None:
    """Why a group's products stay in 16 bits, or None.

    Args:
        parts: its projections' weights as they are kept.
        adapted: whether adapters are on them.
    """
    trained = [isinstance(part, torch.Tensor) and part.requires_grad for part in parts]
    if any(trained) and (adapted or not all(trained)):
        return "some of its weights are trained, and others or adapters beside them"
    if any(isinstance(part, RowScaled) and not part.floats for part in parts):
        return "whole numbers of 8 bits are no 8-bit floats"
    if any(isinstance(part, RowScaled) and part.blocks for part in parts):
        return "8-bit weights have a scale for each block, and products take one for each output"
    odd = [width for part in parts for width in part.shape if width % fp8.MULTIPLE]
    return f"widths are no multiples of {fp8.MULTIPLE} ({odd[0]})" if odd else None


def weights_in_8_bits(
    weights: tuple[Stored, ...],
    rows: tuple[slice, ...],
    width: int,
    workspace: Workspace,
    *,
    turned: bool,
    impl: str,
    joined: torch.Tensor | None = None,
) -> Weights8:
    """Quantize a group.

    Args:
        weights: ``[N_i, K]`` as they are kept.
        rows: of each in the group.
        width: K.
        workspace: where 8-bit values are for a moment.
        turned: whether a turned copy of 16-bit and of 8-bit weights is kept.
        impl: which kernels run.
        joined: the codes of 8-bit floats in one memory, uint8 ``[N, K]``, where all are kept so.
    """
    device = device_of(weights[0])
    scale_N = torch.empty(rows[-1].stop, dtype=torch.float32, device=device)  # noqa: N806
    all_16 = all(isinstance(weight, torch.Tensor) for weight in weights)
    together = torch.empty((len(scale_N), width), dtype=fp8.DTYPE, device=device) if all_16 else None
    if joined is not None:
        together = joined.view(fp8.DTYPE)
    parts: list[Packed | torch.Tensor] = []
    with torch.no_grad():
        for weight, own in zip(weights, rows, strict=True):
            if isinstance(weight, Packed):
                wide_NK = torch.empty(weight.shape, dtype=weight.dtype, device=device)  # noqa: N806
                dequantize(weight, wide_NK, impl=impl)
                _, scale_N1 = fp8.quantize_rows(wide_NK, impl=impl)  # noqa: N806
                parts.append(weight)
            elif isinstance(weight, RowScaled):
                scale_N1 = weight.scale[:, None]  # noqa: N806
                parts.append(weight.as_floats())
            else:
                eight_NK, scale_N1 = fp8.quantize_rows(weight.detach(), impl=impl)  # noqa: N806
                if together is not None:
                    together[own].view(torch.uint8).copy_(eight_NK.view(torch.uint8))
                parts.append(eight_NK)
            scale_N[own] = scale_N1[:, 0]
    if together is not None:
        parts, rows = [together], (slice(0, len(scale_N)),)
    return Weights8(
        scale_N=scale_N,
        inverse_N=1.0 / scale_N,
        ones_K=torch.ones(width, device=device),
        parts=tuple(parts),
        rows=rows,
        turned_KN=fp8.transpose(together, impl=impl) if turned and together is not None else None,
        workspace=workspace,
        impl=impl,
    )
