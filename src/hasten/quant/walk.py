"""Through the decoder one layer at a time: see its inputs, change its weights, pass its new outputs on.

Each layer is changed for the inputs that the changed layers before it give, so errors do not pile up unseen. Only one
layer's statistics exist at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from hasten.quant.layers import Layer
from hasten.quant.moments import Moments, moments
from hasten.quant.stages import Stages


@torch.no_grad()
def walk(
    stages: Stages,
    windows: Sequence[torch.Tensor],
    change: Callable[[Layer, Moments], None],
    weights: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Change every layer.

    Args:
        stages: the model.
        windows: int64 ``[T]`` each.
        change: called for each layer while it is placed; changes the layer's weights in place.
        weights: for the name of a projection, how much each position counts ``[positions]``; all alike without.
    """
    texts = stages.opened(windows)
    for number in range(len(stages.layers)):
        with stages.layer(number, keep=True) as layer:
            change(layer, moments(stages, number, texts, weights or {}))
            texts = stages.through(number, texts)
