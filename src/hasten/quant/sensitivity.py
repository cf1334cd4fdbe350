"""What an error in each weight would cost at the end of the model, estimated from one backward.

To second order the divergence of a model whose weight is off by D is half a quadratic form of D with the Fisher matrix.
With targets y drawn from the model's own distribution, g the gradient of ``sum of log p(y)`` at a projection's output,
and positions taken as independent of each other, that is

    KL per position  ~  1/2 mean over t of (g_t . D x_t)^2

so one backward prices any error D of any projection, and the interactions between projections are left out. The mean
square of g over a position's outputs also says how much that position's error counts (`Prices.weights`).

The backward goes through the decoder from its last layer to its first, one layer at a time: what each layer reads is
kept in host memory on the way forward, and computed with once more on the way back.

Shapes: T positions of a window, N outputs, K inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hasten.errors import CapabilityError
from hasten.quant.layers import Layer
from hasten.quant.moments import Moments, moments
from hasten.quant.stages import Stages, Text

Seen = Callable[[str, torch.Tensor, torch.Tensor], None]
"""Told a projection's name, what it reads ``[T, K]``, and the gradient at its outputs ``[T, N]`` (float32)."""


@dataclass
class Prices:
    """What the backward has found."""

    nats: dict[str, list[float]] = field(default_factory=dict)
    """For each projection, the estimated divergence per position of each of its errors."""
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    """For each projection, how much each position counts: float32 ``[positions]``, 1 on average."""


def price(
    stages: Stages,
    windows: Sequence[torch.Tensor],
    errors_of: Callable[[Layer, Moments], Mapping[str, Sequence[torch.Tensor]]],
    seed: int = 0,
) -> Prices:
    """Weigh positions, and price errors of projections.

    Args:
        stages: the model with its original weights.
        windows: int64 ``[T]`` each.
        errors_of: called for each layer, the last one first, while it is placed, with the weighted second moments of
            what its projections read; gives the errors ``[N, K]`` that are to be priced, by projections.
        seed: of the targets that are drawn.

    Raises:
        CapabilityError: a projection that no position reaches.
    """
    found = Prices()
    with _frozen(stages.model):
        read = [stages.opened(windows)]
        for number in range(len(stages.layers)):
            with stages.layer(number):
                read.append(stages.through(number, read[-1]))
        gradients = _at_the_end(stages, read.pop(), seed)
        for number in reversed(range(len(stages.layers))):
            texts = read.pop()
            with stages.layer(number) as layer:
                weights, before = _weigh(stages, number, texts, gradients)
                with torch.no_grad():
                    errors = errors_of(layer, moments(stages, number, texts, weights))
                found.weights |= weights
                found.nats |= _price(stages, number, texts, gradients, errors)
            gradients = before
    return found


def _at_the_end(stages: Stages, texts: Sequence[Text], seed: int) -> list[torch.Tensor]:
    """Gradients of ``sum of log p(y)`` at what the last layer gives, in host memory; y is drawn from p."""
    generator = torch.Generator(stages.device).manual_seed(seed)
    gradients: list[torch.Tensor] = []
    with stages.closing() as logits:
        for text in texts:
            hidden = text.hidden.to(stages.device).detach().requires_grad_()
            logprobs = logits(hidden).float().log_softmax(-1)
            targets = torch.multinomial(logprobs.detach().exp(), 1, generator=generator)
            (gradient,) = torch.autograd.grad(logprobs.gather(-1, targets).sum(), hidden)
            gradients.append(gradient.to("cpu"))
    return gradients


def _weigh(
    stages: Stages, number: int, texts: Sequence[Text], gradients: Sequence[torch.Tensor]
) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """How much positions count for each projection, and the gradients at what the layer reads."""
    squares: dict[str, list[torch.Tensor]] = {name: [] for name in stages.layers[number].projections}

    def seen(name: str, _: torch.Tensor, g_TN: torch.Tensor) -> None:
        squares[name].append(g_TN.square().mean(-1))

    before = _backward(stages, number, texts, gradients, seen)
    weights: dict[str, torch.Tensor] = {}
    for name, parts in squares.items():
        if not parts:
            raise CapabilityError(
                name,
                "the calibration text never reaches it",
                "How a projection is quantized is chosen by what it reads.",
                "Give more rows, or load the model with load_in_4bit=True.",
            )
        together = torch.cat(parts)
        weights[name] = together / together.mean().clamp(min=torch.finfo(torch.float32).tiny)
    return weights, before


def _price(
    stages: Stages,
    number: int,
    texts: Sequence[Text],
    gradients: Sequence[torch.Tensor],
    errors: Mapping[str, Sequence[torch.Tensor]],
) -> dict[str, list[float]]:
    sums = {name: [0.0] * len(candidates) for name, candidates in errors.items()}

    def seen(name: str, x_TK: torch.Tensor, g_TN: torch.Tensor) -> None:
        for which, error_NK in enumerate(errors.get(name, ())):
            along_T = (g_TN * (x_TK @ error_NK.to(x_TK.dtype).t())).sum(-1)
            sums[name][which] += along_T.square().sum().item()

    _backward(stages, number, texts, gradients, seen)
    positions = sum(text.hidden.shape[1] for text in texts)
    return {name: [0.5 * total / positions for total in totals] for name, totals in sums.items()}


def _backward(
    stages: Stages, number: int, texts: Sequence[Text], gradients: Sequence[torch.Tensor], seen: Seen
) -> list[torch.Tensor]:
    """Gradients at what a placed layer reads, in host memory; one window's activations exist at a time."""

    def watch(name: str) -> Any:
        def on_forward(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            x_TK = inputs[0].detach().flatten(0, -2)
            output.register_hook(lambda gradient: seen(name, x_TK, gradient.flatten(0, -2).float()))

        return on_forward

    handles = [module.register_forward_hook(watch(name)) for name, module in stages.layers[number].linears().items()]
    before: list[torch.Tensor] = []
    try:
        for text, gradient in zip(texts, gradients, strict=True):
            hidden = text.hidden.to(stages.device).detach().requires_grad_()
            output = stages.output(number, text, hidden)
            before.append(torch.autograd.grad(output, hidden, gradient.to(stages.device))[0].to("cpu"))
    finally:
        for handle in handles:
            handle.remove()
    return before


@contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """The backward is for the projections' outputs alone."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
