"""Rounding in which later columns make up for the errors of earlier ones (GPTQ: Frantar et al. 2022, arXiv:2210.17323).

What is minimised is ``tr((W - Q) H (W - Q)^T)``, where ``H [K, K]`` is the second moment of the layer's inputs: the
squared error of its outputs. Columns are rounded one after the other; the error of each is spread over the columns that
are still free. With ``H^-1 = U^T U`` (U upper triangular) the best correction after rounding column j is

    e = (w_j - q_j) / U_jj,        w_k -= e U_jk   for k > j

Columns with large inputs come first, while there is still much to correct with. The scales are fixed before, so any
order of the columns suits blocks that are stored side by side.

Shapes: N outputs, K inputs, B blocks in a row, G columns that are corrected at once.
"""

from __future__ import annotations

import torch

from hasten.kernels.compensated_rounding.op import round_group
from hasten.quant import nf4

_GROUP = 128


def compensated(weight_NK: torch.Tensor, moment_KK: torch.Tensor, scales: nf4.Scales) -> nf4.Nf4:
    """Codes for a weight whose scales are chosen.

    Args:
        weight_NK: float32.
        moment_KK: damped second moment of the inputs, float32, symmetric.
        scales: of its blocks.
    """
    order = moment_KK.diagonal().argsort(descending=True)
    upper_KK = inverse_root(moment_KK[order][:, order])
    free_NK = weight_NK.float()[:, order].clone()
    block = weight_NK.shape[1] // scales.shape[1]
    scales_NK = scales.values().repeat_interleave(block, dim=1)[:, order]
    levels, borders = nf4.levels(weight_NK.device), nf4.borders(weight_NK.device)
    codes_NK = torch.empty_like(weight_NK, dtype=torch.uint8)
    for start in range(0, free_NK.shape[1], _GROUP):
        own = slice(start, start + _GROUP)
        codes_NG = codes_NK.new_empty((len(weight_NK), len(order[own])))
        errors_NG = free_NK.new_empty(codes_NG.shape)
        round_group(free_NK[:, own], scales_NK[:, own], upper_KK[own, own], levels, borders, codes_NG, errors_NG)
        codes_NK[:, order[own]] = codes_NG
        free_NK[:, own.stop :].addmm_(errors_NG, upper_KK[own, own.stop :], alpha=-1)
    return nf4.Nf4(codes_NK, scales)


def damped(moment_KK: torch.Tensor, damping: float) -> torch.Tensor:
    """A second moment that has an inverse.

    It also keeps codes from making up for correlations that only the calibration text has: the fewer tokens, the more
    damping.

    Args:
        moment_KK: second moment of the inputs.
        damping: added to the diagonal, as a share of its mean.
    """
    moment_KK = moment_KK.clone()
    diagonal = moment_KK.diagonal()
    diagonal += damping * diagonal.mean() + torch.finfo(torch.float32).tiny
    return moment_KK


def inverse_root(moment_KK: torch.Tensor) -> torch.Tensor:
    """U, upper triangular, with ``U^T U`` the inverse."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moment_KK))
    return torch.linalg.cholesky(inverse, upper=True)
