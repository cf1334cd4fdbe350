"""nf4 for blocks: frozen weights, so there is nothing to derive."""

from __future__ import annotations

import torch

from hasten.kernels.choice import choose
from hasten.kernels.factor_columns.reference import write_factor
from hasten.kernels.nf4 import reference
from hasten.kernels.nf4.packed import Packed


def dequantize(
    packed: Packed,
    out: torch.Tensor,
    *,
    B: torch.Tensor | None = None,  # noqa: N803
    start: int = 0,
    impl: str = "auto",
) -> None:
    """Write a 4-bit weight, and the columns of a factor beside it, into rows of a buffer.

    Source: Dettmers et al. 2023; the layout as bitsandbytes documents it; no code reused.
    Numerics: float32, rounded once to the dtype of `out`; bit by bit what bitsandbytes gives.

    Args:
        packed: the weight ``[N, K]``.
        out: ``[N, K + P]``, any row stride; float32, bfloat16 or float16.
        B: the factor's columns ``[N, R]`` in any float dtype, or None: all P columns become 0.
        start: which of the P columns its first one is; the others become 0.
        impl: ``torch``, ``triton``, or ``auto``: Triton on a GPU.
    """
    columns = packed.shape[1]
    even = columns % 2 == 0 and packed.blocksize % 2 == 0
    if even and packed.shape[0] and choose(impl, out) == "triton":
        from hasten.kernels.nf4 import triton as kernels

        kernels.dequantize(packed, out, B, start)
        return
    reference.dequantize(packed, out[:, :columns])
    write_factor(out, columns, B, start)


def to_fp8(
    packed: Packed, inverse_N: torch.Tensor, out: torch.Tensor, *, turned: bool = False, impl: str = "auto"
) -> None:
    """Write a 4-bit weight in 8 bits, for products with one scale per row (`hasten.kernels.fp8`).

    Numerics: ``level · (absmax · inverse)`` in float32, one rounding to e4m3.

    Args:
        packed: the weight ``[N, K]``.
        inverse_N: float32 ``[N]``, one over each row's scale.
        out: float8_e4m3fn ``[N, K]``, or ``[K, N]`` where `turned`; any row stride.
        turned: whether rows become columns.
        impl: ``torch``, ``triton``, or ``auto``: Triton on a GPU.
    """
    even = packed.shape[1] % 2 == 0 and packed.blocksize % 2 == 0
    if even and packed.shape[0] and choose(impl, out) == "triton":
        from hasten.kernels.nf4 import triton as kernels

        kernels.to_fp8(packed, inverse_N, out, turned)
        return
    eight_NK = torch.empty(packed.shape, dtype=out.dtype, device=out.device)
    reference.dequantize(packed, eight_NK, inverse_N)
    out.view(torch.uint8).copy_((eight_NK.t() if turned else eight_NK).view(torch.uint8))
