"""Scales once more, when codes are known: the best ones in closed form.

With codes fixed a row of values is linear in its block scales s: ``q = sum over b of s_b l_b``, where ``l_b [K]`` holds
the levels of block b and zeros elsewhere. The output error ``(w - q) H (w - q)^T`` is least where

    A s = r,        A_bc = l_b H l_c^T,        r_b = l_b H w^T

one small system for each row. Codes chosen anew for these scales are better again (`hasten.quant.compensate`).

Shapes: N outputs, K inputs, B blocks in a row, R rows at a time.
"""

from __future__ import annotations

import torch

from hasten.quant import nf4

_ROWS = 512
_RIDGE = 1e-6


def refitted(weight_NK: torch.Tensor, moment_KK: torch.Tensor, rounded: nf4.Nf4) -> nf4.Nf4:
    """The same codes with the scales that suit them best, in their 8 bits.

    Args:
        weight_NK: the original.
        moment_KK: damped second moment of the inputs, as codes were chosen for.
        rounded: the codes.
    """
    scales_NB = torch.cat(
        [
            _solved(weight_RK.float(), moment_KK, codes_RK, rounded.block)
            for weight_RK, codes_RK in zip(weight_NK.split(_ROWS), rounded.codes_NK.split(_ROWS), strict=True)
        ]
    )
    # A block of zeros has no best scale, and bitsandbytes' scales are not negative.
    before_NB = rounded.scales.values()
    sound = scales_NB.isfinite() & (scales_NB > 0)
    return nf4.Nf4(rounded.codes_NK, nf4.stored_scales(torch.where(sound, scales_NB, before_NB)))


def _solved(weight_RK: torch.Tensor, moment_KK: torch.Tensor, codes_RK: torch.Tensor, block: int) -> torch.Tensor:
    rows, inputs = weight_RK.shape
    blocks = inputs // block
    levels_RK = nf4.levels(weight_RK.device)[codes_RK.long()]
    right_RB = ((weight_RK @ moment_KK) * levels_RK).view(rows, blocks, block).sum(-1)
    left_RBB = weight_RK.new_empty((rows, blocks, blocks))
    for b in range(blocks):
        columns = slice(b * block, (b + 1) * block)
        reached_RK = levels_RK[:, columns] @ moment_KK[columns]
        left_RBB[:, b] = (reached_RK * levels_RK).view(rows, blocks, block).sum(-1)
    diagonal_RB = left_RBB.diagonal(dim1=1, dim2=2)
    diagonal_RB += _RIDGE * diagonal_RB.mean(-1, keepdim=True) + torch.finfo(torch.float32).tiny
    return torch.linalg.solve(left_RBB, right_RB[:, :, None])[:, :, 0]
