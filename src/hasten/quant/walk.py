"""Through the decoder one layer at a time: see its inputs, change its weights, pass its new outputs on.

Each layer is changed for the inputs that the changed layers before it give, so errors do not pile up unseen. Only one
layer's statistics exist at a time. How a model calls its layers (masks, positions) is seen once, from the model's own
forward, and repeated.

Shapes: T positions of a window, K inputs of a projection.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hasten.quant.layers import Layer


@dataclass
class _Call:
    """How the model called one layer for one window."""

    arguments: tuple[Any, ...]
    """Without the hidden states."""
    keywords: dict[str, Any]


def walk(
    model: Any,
    layers: Sequence[Layer],
    windows: Sequence[torch.Tensor],
    change: Callable[[Layer, dict[str, torch.Tensor]], None],
    weights: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Change every layer.

    Args:
        model: whose layers they are.
        layers: in the order of the forward.
        windows: int64 ``[T]`` each.
        change: called for each layer with the second moments ``[K, K]`` (float32) of the inputs of its projections;
            changes the layer's weights in place.
        weights: for the name of a projection, how much each position counts ``[positions]``; all alike without.
    """
    with torch.no_grad():
        hidden, calls = _first_inputs(model, layers, windows)
        for number, layer in enumerate(layers):
            run = [call[number] for call in calls]
            change(layer, _moments(layer, hidden, run, weights or {}))
            hidden = [_forward(layer, states, call) for states, call in zip(hidden, run, strict=True)]


def _first_inputs(
    model: Any, layers: Sequence[Layer], windows: Sequence[torch.Tensor]
) -> tuple[list[torch.Tensor], list[list[_Call]]]:
    """What the first layer reads, and how every layer is called, for each window."""
    hidden: list[torch.Tensor] = []
    calls: list[list[_Call]] = []

    def watch(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if not calls[-1]:
            hidden.append(arguments[0])
        calls[-1].append(_Call(arguments[1:], keywords))

    handles = [layer.module.register_forward_pre_hook(watch, with_kwargs=True) for layer in layers]
    try:
        for window in windows:
            calls.append([])
            model.get_decoder()(input_ids=window[None].to(model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return hidden, calls


def _forward(layer: Layer, hidden: torch.Tensor, call: _Call) -> torch.Tensor:
    output = layer.module(hidden, *call.arguments, **call.keywords)
    return output[0] if isinstance(output, tuple) else output


def _moments(
    layer: Layer, hidden: Sequence[torch.Tensor], calls: Sequence[_Call], weights: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Second moments of what each projection reads."""
    sums: dict[str, torch.Tensor] = {}
    seen = dict.fromkeys(layer.projections, 0)

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def on_forward(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            x_TK = arguments[0].flatten(0, -2).float()
            start, seen[name] = seen[name], seen[name] + len(x_TK)
            weighted_TK = x_TK * weights[name][start : seen[name], None] if name in weights else x_TK
            moment_KK = x_TK.t() @ weighted_TK
            sums[name] = sums[name].add_(moment_KK) if name in sums else moment_KK

        return on_forward

    inner = {name: layer.module.get_submodule(name.removeprefix(f"{layer.name}.")) for name in layer.projections}
    handles = [module.register_forward_pre_hook(watch(name)) for name, module in inner.items()]
    try:
        for states, call in zip(hidden, calls, strict=True):
            _forward(layer, states, call)
    finally:
        for handle in handles:
            handle.remove()
    return {name: total / seen[name] for name, total in sums.items()}
