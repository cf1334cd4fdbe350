"""What an error in each weight would cost at the end of the model, estimated from one backward.

To second order the divergence of a model whose weight is off by D is half a quadratic form of D with the Fisher matrix.
With targets y drawn from the model's own distribution, g the gradient of ``sum of log p(y)`` at a projection's output,
and positions taken as independent of each other, that is

    KL per position  ~  1/2 mean over t of (g_t . D x_t)^2

so one backward prices any error D of any projection, and the interactions between projections are left out. The mean
square of g over a position's outputs also says how much that position's error counts (`Prices.weights`).

Shapes: T positions of a window, N outputs, K inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hasten.errors import CapabilityError


@dataclass
class Prices:
    """What the backward passes have found."""

    nats: dict[str, list[float]] = field(default_factory=dict)
    """For each projection, the estimated divergence per position of each of its errors."""
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    """For each projection, how much each position counts: float32 ``[positions]``, 1 on average."""


def price(
    model: Any, windows: Sequence[torch.Tensor], errors: Mapping[str, Sequence[torch.Tensor]], seed: int = 0
) -> Prices:
    """Price errors of projections.

    Args:
        model: with its original weights.
        windows: int64 ``[T]`` each.
        errors: for the name of each projection, the errors ``[N, K]`` that are to be priced.
        seed: of the targets that are drawn.

    Raises:
        CapabilityError: a projection that no position reaches.
    """
    generator = torch.Generator(model.device).manual_seed(seed)
    squares: dict[str, list[torch.Tensor]] = {name: [] for name in errors}
    sums = {name: [0.0] * len(candidates) for name, candidates in errors.items()}
    positions = 0

    def watch(name: str) -> Any:
        def on_forward(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            x_TK = inputs[0].detach().flatten(0, -2)

            def on_backward(gradient: torch.Tensor) -> None:
                g_TN = gradient.flatten(0, -2).float()
                squares[name].append(g_TN.square().mean(-1))
                for number, error_NK in enumerate(errors[name]):
                    along_T = (g_TN * (x_TK @ error_NK.to(x_TK.dtype).t())).sum(-1)
                    sums[name][number] += along_T.square().sum().item()

            output.register_hook(on_backward)

        return on_forward

    handles = [model.get_submodule(name).register_forward_hook(watch(name)) for name in errors]
    try:
        for window in windows:
            embedded = model.get_input_embeddings()(window[None].to(model.device)).detach().requires_grad_()
            logits = model(inputs_embeds=embedded, use_cache=False).logits[0].float()
            logprobs = logits.log_softmax(-1)
            targets = torch.multinomial(logprobs.detach().exp(), 1, generator=generator)
            logprobs.gather(-1, targets).sum().backward()
            positions += len(window)
    finally:
        for handle in handles:
            handle.remove()
    found = Prices()
    for name in errors:
        if not squares[name]:
            raise CapabilityError(
                name,
                "the calibration text never reaches it",
                "How a projection is quantized is chosen by what it reads.",
                "Give more rows, or load the model with load_in_4bit=True.",
            )
        found.nats[name] = [0.5 * total / positions for total in sums[name]]
        together = torch.cat(squares[name])
        found.weights[name] = together / together.mean().clamp(min=torch.finfo(torch.float32).tiny)
    return found
