"""A model in stages, so that one decoder layer at a time is on the device: what opens it, its layers, what closes it.

All windows go through a stage before the next is placed; between stages their hidden states wait in host memory. What
stands before the first layer and after the last (embedding, masks, rotations, norm, head, caps) is not known here: the
model's own forward runs it, while stand-ins in place of its layers note how they are called and hand on what they are
told to. A layer is then called as the model would call it.

That is right where layers give each other nothing but hidden states, which is tried on a few tokens first.

Shapes: T positions of a window, D width of the hidden states, V tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from hasten.errors import CapabilityError
from hasten.quant.layers import Layer, decoder_layers
from hasten.quant.placing import placed, tensors_of

_TRIED = 16
"""Tokens that are tried."""
_TOLERANCE = 0.02
"""Of the largest logit; the same kernels run on the same numbers, a missing input changes far more."""


@dataclass(frozen=True)
class Call:
    """How the model calls one layer for one window."""

    arguments: tuple[Any, ...]
    """Without the hidden states."""
    keywords: dict[str, Any]


@dataclass(frozen=True)
class Text:
    """One window on its way."""

    hidden: torch.Tensor
    """What the next layer reads, ``[1, T, D]``, in host memory."""
    calls: tuple[Call, ...]
    """One for each layer."""


class Stages:
    """A causal language model in evaluation mode.

    Args:
        model: it stays whole, and its weights stay where they are.
        device: where one stage at a time is copied to and computed; None: all of the model is where it is computed.

    Raises:
        ModelError: the weights are quantized already.
        CapabilityError: there are no layers to go through, or they give each other more than hidden states.
    """

    def __init__(self, model: Any, device: torch.device | None = None) -> None:
        self.model, self.layers = model, decoder_layers(model)
        self.device: torch.device = device or model.device
        self.streamed = device is not None
        self._to = device
        self._list: Any = model.get_submodule(self.layers[0].name.rpartition(".")[0])
        self._beside: tuple[Any, ...] | None = None  # what the model's layers return beside hidden states
        inside = {id(tensor) for layer in self.layers for tensor in tensors_of(layer.module)}
        self._rest = [tensor for tensor in tensors_of(model) if id(tensor) not in inside]
        embedding, head = _ids(model.get_input_embeddings()), _ids(model.get_output_embeddings())
        self._opening = [tensor for tensor in self._rest if id(tensor) not in head - embedding]
        self._closing = [tensor for tensor in self._rest if id(tensor) not in embedding - head]
        self._try_out()

    @torch.no_grad()
    def opened(self, windows: Sequence[torch.Tensor]) -> list[Text]:
        """Windows (int64 ``[T]`` each) at the first layer."""
        with placed(self._opening, self._to):
            return [self._at_the_first_layer(window) for window in windows]

    @contextmanager
    def layer(self, number: int, keep: bool = False) -> Iterator[Layer]:
        """One layer, placed; its changed weights stay with `keep`."""
        layer = self.layers[number]
        with placed(tensors_of(layer.module), self._to, keep):
            yield layer

    def output(self, number: int, text: Text, hidden: torch.Tensor | None = None) -> torch.Tensor:
        """What a placed layer makes of a window, ``[1, T, D]`` on the device.

        Args:
            number: of the layer.
            text: the window.
            hidden: its hidden states on the device, where they are not to be taken from the text.
        """
        call = text.calls[number]
        hidden = text.hidden.to(self.device) if hidden is None else hidden
        output = self.layers[number].module(hidden, *call.arguments, **call.keywords)
        return output[0] if isinstance(output, tuple) else output

    @torch.no_grad()
    def through(self, number: int, texts: Sequence[Text]) -> list[Text]:
        """Windows behind a placed layer."""
        return [replace(text, hidden=self.output(number, text).to("cpu")) for text in texts]

    @contextmanager
    def closing(self) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
        """From hidden states behind the last layer (``[1, T, D]``, anywhere) to logits ``[T, V]`` on the device."""

        def logits(hidden: torch.Tensor) -> torch.Tensor:
            hidden = hidden.to(self.device)
            with self._stand_ins(lambda _, call: hidden):
                return self.model(inputs_embeds=hidden, use_cache=False).logits[0]

        with placed(self._closing, self._to):
            yield logits

    def _at_the_first_layer(self, window: torch.Tensor) -> Text:
        calls: list[Call] = []
        first: list[torch.Tensor] = []

        def seen(hidden: torch.Tensor, call: Call) -> torch.Tensor:
            first.append(hidden)
            calls.append(call)
            return hidden

        with self._stand_ins(seen):
            self.model.get_decoder()(input_ids=window[None].to(self.device), use_cache=False)
        return Text(first[0].to("cpu"), tuple(calls))

    @contextmanager
    def _stand_ins(self, seen: Callable[[torch.Tensor, Call], torch.Tensor]) -> Iterator[None]:
        """In the block, the model's forward calls `seen` in place of its layers."""
        layers = list(self._list)
        try:
            for number, layer in enumerate(layers):
                self._list[number] = _StandIn(layer, seen, self._beside)
            yield
        finally:
            for number, layer in enumerate(layers):
                self._list[number] = layer

    @torch.no_grad()
    def _try_out(self) -> None:
        """Compare with the model's own forward, which also tells what its layers return."""
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        # Two windows: what a layer left for another one would come from the wrong window.
        windows = [torch.arange(start, start + _TRIED) % vocabulary for start in (0, _TRIED)]
        whole = self._whole(windows)
        texts = self.opened(windows)
        same = all(len(text.calls) == len(self.layers) for text in texts)
        if same:
            for number in range(len(self.layers)):
                with self.layer(number):
                    texts = self.through(number, texts)
            with self.closing() as logits:
                apart = torch.stack([logits(text.hidden) for text in texts])
            # Predictions that are not finite are another's to refuse.
            allowed = _TOLERANCE * whole.nan_to_num(0.0, 0.0, 0.0).abs().max().item()
            same = torch.allclose(apart, whole, rtol=0.0, atol=allowed, equal_nan=True)
        if not same:
            raise CapabilityError(
                f"model_type '{self.model.config.model_type}'",
                "layer by layer it computes something else than as a whole",
                "Dynamic quantization goes through layers one by one, which may give each other hidden states only.",
                "Load it with load_in_4bit=True instead.",
            )

    def _whole(self, windows: Sequence[torch.Tensor]) -> torch.Tensor:
        """Logits ``[windows, T, V]`` of the model's own forward, its layers placed one after the other."""

        def note(_: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            self._beside = output[1:] if isinstance(output, tuple) else None

        with ExitStack() as stack:
            stack.enter_context(placed(self._rest, self._to))
            stack.callback(self.layers[0].module.register_forward_hook(note).remove)
            for number, layer in enumerate(self.layers):
                self._place_when_called(number, layer, stack)
            rows = (window[None].to(self.device) for window in windows)
            return torch.stack([self.model(input_ids=row, use_cache=False).logits[0] for row in rows])

    def _place_when_called(self, number: int, layer: Layer, stack: ExitStack) -> None:
        while_called = ExitStack()
        stack.enter_context(while_called)

        def before(*_: Any) -> None:
            while_called.enter_context(self.layer(number))

        def after(*_: Any) -> None:
            while_called.close()

        stack.callback(layer.module.register_forward_pre_hook(before).remove)
        stack.callback(layer.module.register_forward_hook(after).remove)


class _StandIn(nn.Module):
    """In a layer's place: says what is asked of the layer, computes nothing.

    Args:
        layer: models read properties of their layers before they call them.
        seen: given the hidden states and the call, gives the hidden states that are returned.
        beside: what the layer would return beside them; None where it returns a tensor.
    """

    def __init__(
        self, layer: nn.Module, seen: Callable[[torch.Tensor, Call], torch.Tensor], beside: tuple[Any, ...] | None
    ) -> None:
        super().__init__()
        self.__dict__.update(layer=layer, seen=seen, beside=beside)  # not registered: it has no weights

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["layer"], name)

    def forward(self, hidden: torch.Tensor, *arguments: Any, **keywords: Any) -> Any:
        """As the layer is called."""
        hidden = self.seen(hidden, Call(arguments, keywords))
        return hidden if self.beside is None else (hidden, *self.beside)


def _ids(module: nn.Module | None) -> set[int]:
    return {id(tensor) for tensor in tensors_of(module)} if module is not None else set()
