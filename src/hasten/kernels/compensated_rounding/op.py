"""compensated_rounding for quantizing: nothing to derive."""

from __future__ import annotations

import torch

from hasten.kernels.choice import choose
from hasten.kernels.compensated_rounding import reference


def round_group(
    free_NG: torch.Tensor,
    scales_NG: torch.Tensor,
    upper_GG: torch.Tensor,
    levels: torch.Tensor,
    borders: torch.Tensor,
    codes_NG: torch.Tensor,
    errors_NG: torch.Tensor,
    *,
    impl: str = "auto",
) -> None:
    """Round a group of columns, each making up for the errors of those before it.

    Source: README.md; no code reused.
    Numerics: float32; codes of `torch` and `triton` are equal but for ties in the last digit.

    Args:
        free_NG: what is rounded, float32, any row stride; left as it is.
        scales_NG: float32, of each value.
        upper_GG: float32, upper triangular, with a diagonal that is not zero.
        levels: float32 ``[16]``, ascending.
        borders: float32 ``[15]``, halfway between levels.
        codes_NG: uint8, any row stride; written.
        errors_NG: float32, any row stride; written: what later groups make up for.
        impl: ``torch``, ``triton``, or ``auto``: Triton on a GPU.
    """
    rows = free_NG.shape[0]
    if rows and choose(impl, free_NG) == "triton":
        from hasten.kernels.compensated_rounding import triton as kernels

        kernels.round_group(free_NG, scales_NG, upper_GG, levels, borders, codes_NG, errors_NG)
        return
    reference.round_group(free_NG, scales_NG, upper_GG, levels, borders, codes_NG, errors_NG)
