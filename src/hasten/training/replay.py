"""Micro-batches recorded once per size and replayed: one launch instead of thousands (CUDA graphs).

Launching the kernels of an 8B model's step takes a processor longer than a GPU needs to run them on 3,000 tokens. What
was launched for one micro-batch can be launched again, in one piece, for every other of the same sizes: the recorded
kernels read their inputs from the same memory, which is filled anew, and add to the same gradients.

Nothing is computed in another way: the same kernels in the same order, so the same bits. Of each size

    the first    is run as it is, while torch watches: where the processor waits for the device, nothing is recorded
    the next     are run as they are until the device was idle after two more of them than it was busy after: it waits
    the next     is recorded, and replayed
    all others   are replayed

So a size is recorded only where that saves time: not where the device has more to do than the processor, and not where
sizes are rare. When that is found out differs from run to run; what is computed does not.

What a recording depends on beside values (which adapters are active, what layers keep, where weights lie) is compared
before every replay. What comes and goes in recordings shares one memory, apart from that of everything not recorded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

MOST = 64
"""Sizes that are recorded; each takes some megabytes for its launches."""

Inputs = dict[str, Any]
Compute = Callable[[Inputs, torch.Tensor], torch.Tensor]
"""A micro-batch's forward and backward: inputs on the device and the loss's divisor, a scalar there, to the loss."""

EXPOSED = 2
"""Runs of a size after which the device was idle, before it is recorded: that takes longer than a few launched runs."""

_WAITS = "called a synchronizing CUDA operation"
_PROTOTYPE = "Synchronization debug mode is a prototype"
_ALIGNED = 64
"""Each gradient begins at a multiple of so many values."""


class FixedGradients:
    """Gradients that stay at their addresses, step after step.

    Args:
        parameters: the trained ones.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        self.parameters = parameters
        sizes: dict[torch.dtype, int] = {}
        starts = []
        for parameter in parameters:
            starts.append(sizes.setdefault(parameter.dtype, 0))
            sizes[parameter.dtype] += -(-parameter.numel() // _ALIGNED) * _ALIGNED
        device = parameters[0].device
        self.memory = {dtype: torch.zeros(size, dtype=dtype, device=device) for dtype, size in sizes.items()}
        self.gradients = [
            self.memory[parameter.dtype][start : start + parameter.numel()].view(parameter.shape)
            for parameter, start in zip(parameters, starts, strict=True)
        ]

    def attach(self) -> None:
        """Make them the parameters' gradients, zero, where they are not."""
        if self.parameters[0].grad is self.gradients[0]:
            return
        for memory in self.memory.values():
            memory.zero_()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient


@dataclass
class Recording:
    """One size's launches and the memory that they read and write."""

    graph: torch.cuda.CUDAGraph
    inputs: Inputs
    divisor: torch.Tensor
    loss: torch.Tensor

    def run(self, inputs: Inputs, divisor: int) -> torch.Tensor:
        """The loss of other inputs; its memory is the next run's."""
        for name, value in inputs.items():
            if isinstance(value, torch.Tensor):
                self.inputs[name].copy_(value, non_blocking=True)
        self.divisor.fill_(divisor)
        self.graph.replay()
        return self.loss


class Replay:
    """Runs micro-batches, recorded where their size has come before.

    Args:
        compute: one forward and backward; it adds to the gradients, and keeps nothing of its inputs.
        parameters: the trained ones, all on one GPU.
        state: what recordings depend on beside values, compared by identity; None: nothing may be recorded now.
        fits: whether there is memory to record these inputs.
        forget: gives up what a broken computation has on its way on other streams, so that a recording can end.
    """

    def __init__(
        self,
        compute: Compute,
        parameters: Sequence[torch.nn.Parameter],
        state: Callable[[], list[Any] | None],
        fits: Callable[[Inputs], bool] = lambda inputs: True,
        forget: Callable[[], None] = lambda: None,
    ) -> None:
        self.compute, self.state, self.fits, self.forget = compute, state, fits, forget
        self.device = parameters[0].device
        self.gradients = FixedGradients(parameters)
        self.recordings: dict[Any, Recording] = {}
        self.stopped = ""
        """Why nothing is recorded any more; empty: it is."""
        self.full = ""
        """Why some sizes are not recorded, if there are more than are kept."""
        self.replayed = 0
        """Micro-batches that were."""
        self._ready: set[Any] = set()
        """Sizes that were run without waiting."""
        self._exposed: dict[Any, int] = {}
        """Of sizes not recorded: after how many runs the device was idle, less those after which it was busy."""
        self._last: tuple[Any, torch.cuda.Event] | None = None
        """The size of the last run that was launched, and its end."""
        self._waited: set[Any] = set()
        self._known: list[Any] | None = None
        self._heard: dict[Any, Any] = {}
        """Warnings that were passed on."""
        self._memory = torch.cuda.graph_pool_handle()

    def run(self, inputs: Inputs, divisor: int) -> torch.Tensor:
        """Forward and backward of one micro-batch.

        Args:
            inputs: tensors in the processor's memory or on the device, and plain values.
            divisor: of the loss.

        Returns:
            The loss; it is read before the next call.
        """
        self.gradients.attach()
        self._look_back()
        state = self.state()
        if state is None or not same_state(state, self._known):
            self._forget()
            self._known = state
        size = tuple((n, v.shape if isinstance(v, torch.Tensor) else v) for n, v in sorted(inputs.items()))
        recording = self.recordings.get(size)
        if recording is None:
            if state is None or self.stopped or not self._room() or not self.fits(inputs):
                return self.compute(self._moved(inputs), self._scalar(divisor))
            if size not in self._ready:
                return self._watched(size, inputs, divisor)  # loads kernels: says nothing of launches
            if self._exposed.get(size, 0) < EXPOSED or (recording := self._record(inputs, divisor)) is None:
                return self._noted(size, self.compute(self._moved(inputs), self._scalar(divisor)))
            self.recordings[size] = recording
        self.replayed += 1
        return recording.run(inputs, divisor)

    def close(self) -> None:
        """Give up the recordings and their memory."""
        self._forget()
        self._known = self._last = None

    def _record(self, inputs: Inputs, divisor: int) -> Recording | None:
        """Record without computing; None where memory is short, which ends all recording."""
        held, scalar = self._moved(inputs, copied=True), self._scalar(divisor)
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads (heartbeats, pinned copies) may call the device meanwhile: only this one's calls are judged.
            with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
                try:
                    loss = self.compute(held, scalar)
                except torch.OutOfMemoryError:
                    self.forget()
                    raise
        except torch.OutOfMemoryError:
            self._stop("not enough memory for recordings beside the rest")
            self._forget()
            torch.cuda.empty_cache()
            return None
        return Recording(graph, held, scalar, loss)

    def _watched(self, size: Any, inputs: Inputs, divisor: int) -> torch.Tensor:
        """Run as it is, and find out whether the processor waits for the device."""
        moved, scalar = self._moved(inputs), self._scalar(divisor)
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                loss = self.compute(moved, scalar)
            finally:
                torch.cuda.set_sync_debug_mode(before)
        texts = [str(warning.message) for warning in heard]
        for warning, text in zip(heard, texts, strict=True):
            if _WAITS not in text and _PROTOTYPE not in text:
                place = warning.filename, warning.lineno
                warnings.warn_explicit(warning.message, warning.category, *place, registry=self._heard)
        if not any(_WAITS in text for text in texts):
            self._ready.add(size)
        elif size in self._waited:  # the first run of a size may load kernels; the second has no excuse
            self._stop("the model waits for the device in its forward or backward")
        else:
            self._waited.add(size)
        return loss

    def _noted(self, size: Any, loss: torch.Tensor) -> torch.Tensor:
        """Remember where on the device a launched run ends."""
        end = torch.cuda.Event()
        end.record(torch.cuda.current_stream(self.device))
        self._last = size, end
        return loss

    def _look_back(self) -> None:
        """Count the last launched run if the device has done it before the next one has come."""
        if self._last is not None:
            size, end = self._last
            self._exposed[size] = max(0, self._exposed.get(size, 0) + (1 if end.query() else -1))
        self._last = None

    def _room(self) -> bool:
        """Whether one more size is kept; says it once where not."""
        if len(self.recordings) < MOST:
            return True
        if not self.full:
            self.full = f"{MOST} sizes are recorded, all others are not"
            warnings.warn(f"some micro-batches are launched one by one: {self.full}", stacklevel=3)
        return False

    def _stop(self, why: str) -> None:
        self.stopped = why
        warnings.warn(f"micro-batches are launched one by one from now on: {why}", stacklevel=3)

    def _forget(self) -> None:
        self.recordings.clear()
        self._ready.clear()
        self._exposed.clear()
        self._memory = torch.cuda.graph_pool_handle()

    def _moved(self, inputs: Inputs, *, copied: bool = False) -> Inputs:
        return {
            name: value.to(self.device, non_blocking=True, copy=copied) if isinstance(value, torch.Tensor) else value
            for name, value in inputs.items()
        }

    def _scalar(self, value: int) -> torch.Tensor:
        return torch.full((), value, device=self.device, dtype=torch.int64)


def same_state(state: list[Any], known: list[Any] | None) -> bool:
    """Whether two states hold the same objects, words and numbers."""
    return known is not None and len(state) == len(known) and all(map(_is, state, known))


def _is(one: Any, other: Any) -> bool:
    return one is other or (isinstance(one, int | str) and one == other)
