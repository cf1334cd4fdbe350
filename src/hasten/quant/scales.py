"""Scales that fit the inputs: each block's largest magnitude, times the factor that loses least.

What is lost is ``sum over k of m_k (w_k - q_k)^2``, where ``m_k`` is the mean square of input k. Clipping the largest
value of a block makes all other steps finer; whether that pays depends on which inputs are large.

Shapes: N outputs, K inputs, B blocks in a row.
"""

from __future__ import annotations

import torch

from hasten.quant import nf4

FACTORS = tuple(round(0.72 + 0.04 * step, 2) for step in range(9))
"""From 0.72 to 1.04; above 1 the levels fall elsewhere, which helps some blocks."""


def fitted(
    weight_NK: torch.Tensor,
    weights_K: torch.Tensor,
    block: int = nf4.BLOCK,
    factors: tuple[float, ...] = FACTORS,
) -> nf4.Scales:
    """The best scale of each block, in its 8 bits.

    Args:
        weight_NK: the weight.
        weights_K: how much the square of an error at each input counts, float32, not negative.
        block: values that share a scale.
        factors: what the largest magnitude is multiplied with.
    """
    largest_NB = nf4.largest(weight_NK, block)
    blocks = weight_NK.float().view(*largest_NB.shape, block)
    counts = weights_K.view(1, -1, block)
    levels = nf4.levels(weight_NK.device)
    best_NB, least_NB = largest_NB, torch.full_like(largest_NB, torch.inf)
    for factor in factors:
        scales = (largest_NB * factor)[:, :, None]
        values = levels[nf4.nearest_codes(blocks, scales).long()] * scales
        lost_NB = ((blocks - values).square() * counts).sum(-1)
        better = lost_NB < least_NB
        best_NB, least_NB = torch.where(better, largest_NB * factor, best_NB), torch.where(better, lost_NB, least_NB)
    return nf4.stored_scales(best_NB)


def rounded(weight_NK: torch.Tensor, scales: nf4.Scales) -> nf4.Nf4:
    """The nearest codes for given scales."""
    values_NB = scales.values()
    blocks = weight_NK.float().view(*values_NB.shape, -1)
    return nf4.Nf4(nf4.nearest_codes(blocks, values_NB[:, :, None]).view(weight_NK.shape), scales)
