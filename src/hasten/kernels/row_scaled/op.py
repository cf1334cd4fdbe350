"""row_scaled for blocks: frozen weights, so there is nothing to derive."""

from __future__ import annotations

import torch

from hasten.kernels.choice import choose
from hasten.kernels.factor_columns.reference import write_factor
from hasten.kernels.fp8.op import quantize_rows
from hasten.kernels.row_scaled import reference
from hasten.kernels.row_scaled.rows import RowScaled


def quantize(weight_NK: torch.Tensor, *, impl: str = "auto") -> RowScaled:
    """A weight as e4m3 floats with one scale per row.

    Source: README.md; no code reused.
    Numerics: float32, one rounding to e4m3; a row's largest value is exact.

    Args:
        weight_NK: ``[N, K]``, float32, bfloat16 or float16.
        impl: ``torch``, ``triton``, or ``auto``: Triton on a GPU.
    """
    eight_NK, scale_N1 = quantize_rows(weight_NK, impl=impl)
    return RowScaled(eight_NK.view(torch.uint8), scale_N1[:, 0], weight_NK.dtype)


def dequantize(
    weight: RowScaled,
    out: torch.Tensor,
    *,
    B: torch.Tensor | None = None,  # noqa: N803
    start: int = 0,
    impl: str = "auto",
) -> None:
    """Write an 8-bit weight, and the columns of a factor beside it, into rows of a buffer.

    Source: README.md; no code reused.
    Numerics: float32, rounded once to the dtype of `out`.

    Args:
        weight: ``[N, K]``.
        out: ``[N, K + P]``, any row stride; float32, bfloat16 or float16.
        B: the factor's columns ``[N, R]`` in any float dtype, or None: all P columns become 0.
        start: which of the P columns its first one is; the others become 0.
        impl: ``torch``, ``triton``, or ``auto``: Triton on a GPU.
    """
    rows, columns = weight.shape
    if rows and choose(impl, out) == "triton":
        from hasten.kernels.row_scaled import triton as kernels

        kernels.dequantize(weight, out, B, start)
        return
    reference.dequantize(weight, out[:, :columns])
    write_factor(out, columns, B, start)
