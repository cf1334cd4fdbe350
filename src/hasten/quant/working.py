"""Memory that choosing codes needs beside the weights, counted from shapes.

Codes for a weight ``[N, K]`` are chosen in float32: some copies of the weight, and some of the second moment ``[K, K]``
of its inputs, which in wide layers are larger than the layer. A large vocabulary's distributions come at another time.

Shapes: N outputs, K inputs, T positions of a window, V tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hasten.quant.layers import Layer

_PER_VALUE, _PER_MOMENT = 22, 24
"""Bytes for each value of a weight and of its moment: counted on a CPU, where solving takes no scratch memory."""
_PER_LOGIT = 24
"""Logits, log-probabilities, probabilities and their gradients."""


def working_bytes(model: Any, layers: Sequence[Layer], window: int) -> int:
    """The most that is needed at once beside the weights.

    Args:
        model: whose layers they are.
        layers: all of it.
        window: T, of the longest window.
    """
    rounding = max(_rounding_bytes(model, layer) for layer in layers)
    return max(rounding, _PER_LOGIT * window * model.get_input_embeddings().weight.shape[0])


def _rounding_bytes(model: Any, layer: Layer) -> int:
    """Moments of all projections wait while codes for one of them are chosen; so do the errors before."""
    shapes = [tuple(model.get_submodule(name).weight.shape) for name in layer.projections]
    waiting = sum(4 * inputs * inputs + 2 * outputs * inputs for outputs, inputs in shapes)
    return waiting + max((_PER_VALUE * n * k + _PER_MOMENT * k * k for n, k in shapes), default=0)
