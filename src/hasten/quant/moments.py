"""Second moments of what the projections of one layer read: ``sum over t of c_t x_t x_t^T``, over the positions.

Shapes: T positions of a window, K inputs of a projection.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hasten.quant.stages import Stages, Text

Moments = dict[str, torch.Tensor]
"""For each projection that is reached, float32 ``[K, K]``."""


@torch.no_grad()
def moments(stages: Stages, number: int, texts: Sequence[Text], weights: Mapping[str, torch.Tensor]) -> Moments:
    """The moments of one layer, on the device.

    Args:
        stages: the model, with the layer placed.
        number: of the layer.
        texts: windows at the layer.
        weights: for the name of a projection, how much each position counts ``[positions]``; all alike without.
    """
    sums: dict[str, torch.Tensor] = {}
    seen = dict.fromkeys(stages.layers[number].projections, 0)

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def on_forward(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            x_TK = arguments[0].flatten(0, -2).float()
            start, seen[name] = seen[name], seen[name] + len(x_TK)
            weighted_TK = x_TK * weights[name][start : seen[name], None] if name in weights else x_TK
            moment_KK = x_TK.t() @ weighted_TK
            sums[name] = sums[name].add_(moment_KK) if name in sums else moment_KK

        return on_forward

    projections = stages.layers[number].linears()
    handles = [module.register_forward_pre_hook(watch(name)) for name, module in projections.items()]
    try:
        for text in texts:
            stages.output(number, text)
    finally:
        for handle in handles:
            handle.remove()
    return {name: total / seen[name] for name, total in sums.items()}
