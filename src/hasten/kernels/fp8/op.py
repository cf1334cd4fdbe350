"""fp8 for blocks: frozen weights, whose own products are derived in README.md."""

from __future__ import annotations

import torch
from torch.nn import functional as F  # noqa: N812

from hasten.kernels.choice import choose
from hasten.kernels.fp8 import reference
from hasten.kernels.fp8.reference import LARGEST, SMALLEST_SCALE

DTYPE = torch.float8_e4m3fn
MULTIPLE = 16
"""Both widths of a weight are multiples of this: what 8-bit products take."""


def new_rows(rows: int, columns: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Unwritten 8-bit rows ``[M, K]`` and their scales, float32 ``[M, 1]``."""
    empty = torch.empty((rows, columns), dtype=DTYPE, device=device)
    return empty, torch.empty((rows, 1), dtype=torch.float32, device=device)


def quantize_rows(
    x_MK: torch.Tensor, factor_K: torch.Tensor | None = None, *, impl: str = "auto"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows in 8 bits with one scale each.

    Source: README.md; no code reused.
    Numerics: float32, one rounding to e4m3; a row's largest value is exact.

    Args:
        x_MK: ``[M, K]``, any row stride; float32, bfloat16 or float16.
        factor_K: float32 ``[K]``, multiplied to every row first.
        impl: ``torch``, ``triton``, or ``auto``: Triton on a GPU.

    Returns:
        float8_e4m3fn ``[M, K]`` and float32 ``[M, 1]``; ``x · factor`` is about their product.
    """
    x8_MK, scale_M1 = new_rows(x_MK.shape[0], x_MK.shape[1], x_MK.device)
    if x_MK.numel() and choose(impl, x_MK) == "triton":
        from hasten.kernels.fp8 import triton as kernels

        kernels.quantize_rows(x_MK, factor_K, x8_MK, scale_M1, LARGEST, SMALLEST_SCALE)
    elif x_MK.numel():
        reference.quantize_rows(x_MK, factor_K, x8_MK, scale_M1)
    return x8_MK, scale_M1


def product(
    x8_MK: torch.Tensor,
    x_scale_M1: torch.Tensor,
    w8_NK: torch.Tensor,
    w_scale_N: torch.Tensor,
    *,
    dtype: torch.dtype,
) -> torch.Tensor:
    """``y = (x8 w8^T) · x_scale · w_scale``.

    Numerics: sums in the tensor cores' fast accumulation on a GPU, in float32 elsewhere; one rounding to `dtype`.

    Args:
        x8_MK: ``[M, K]``, contiguous rows.
        x_scale_M1: float32 ``[M, 1]``.
        w8_NK: ``[N, K]``, contiguous rows; N and K multiples of 16 on a GPU.
        w_scale_N: float32 ``[N]``.
        dtype: of the result; bfloat16 on a GPU.

    Returns:
        ``[M, N]``.
    """
    if not x8_MK.is_cuda:
        return reference.product(x8_MK, x_scale_M1, w8_NK, w_scale_N).to(dtype)
    rowwise = F.ScalingType.RowWise  # type: ignore[attr-defined]
    return F.scaled_mm(  # type: ignore[attr-defined, no-any-return]
        x8_MK, w8_NK.t(), x_scale_M1, rowwise, w_scale_N[None, :], rowwise, output_dtype=dtype, use_fast_accum=True
    )  # fmt: skip


def transpose(w8_NK: torch.Tensor, out: torch.Tensor | None = None, *, impl: str = "auto") -> torch.Tensor:
    """A weight turned round: ``[K, N]``, contiguous.

    Args:
        w8_NK: ``[N, K]``, 8-bit, any row stride.
        out: where to write.
        impl: ``torch``, ``triton``, or ``auto``: Triton on a GPU.
    """
    if out is None:
        out = torch.empty(w8_NK.shape[::-1], dtype=w8_NK.dtype, device=w8_NK.device)
    if w8_NK.numel() and choose(impl, w8_NK) == "triton":
        from hasten.kernels.fp8 import triton as kernels

        kernels.transpose(w8_NK, out)
    else:
        out.view(torch.uint8).copy_(w8_NK.view(torch.uint8).t())
    return out
