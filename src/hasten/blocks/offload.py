"""Inputs of layers that wait in the computer's own memory between forward and backward.

Copies run on a stream of their own. The backward asks for inputs in the reverse order of the forward, so each request
also starts the copy of the one before it: it travels while the layer computes. On unified memory, where both ends are
the same memory, nothing is moved and nothing pinned, whoever asks.

Each input of a forward has a place of its own, the same in every forward, and streams wait for each other by events
alone. So a step can be recorded (`hasten.training.replay`), and nothing is asked of the allocators in between: a tensor
on its way is held until the computing stream has waited for its copy; on the way out that is two inputs later.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

import torch

from hasten.hardware.probe import shares_memory

_ON_THEIR_WAY = 2
"""Inputs whose copies out nobody waits for yet."""


@dataclass(eq=False)
class Away:
    """One tensor that was moved out."""

    owner: Offload
    host: torch.Tensor
    device: torch.device
    place: int
    """Which of the owner's memory it has."""
    back: torch.Tensor | None = None

    def fetch(self) -> None:
        """Start the copy back, if nobody has."""
        if self.back is not None:
            return
        if self.host.device == self.device:
            self.back = self.host
            return
        self.owner.settle(0)
        self.back = torch.empty_like(self.host, device=self.device)  # of the computing stream's memory
        arrived = self.owner.copy(self.back, self.host)
        self.owner.coming.append((weakref.ref(self), self.back, arrived))

    def get(self) -> torch.Tensor:
        """The tensor, back on its device; the one put before it is started too."""
        self.fetch()
        self.owner.before(self)
        self.owner.arrive(self)
        back, self.back = self.back, None
        assert back is not None
        return back


@dataclass
class Offload:
    """Keeps the order of what was moved out in one forward."""

    waiting: list[weakref.ref[Away]] = field(default_factory=list)
    """A forward whose graph is dropped takes its own with it."""
    streams: dict[torch.device, Any] = field(default_factory=dict)
    leaving: list[tuple[torch.Tensor, Any]] = field(default_factory=list)
    """Tensors on their way out, and the ends of their copies."""
    coming: list[tuple[weakref.ref[Away], torch.Tensor, Any]] = field(default_factory=list)
    """Tensors on their way back that nobody has got yet; held until the computing stream has waited for them."""
    memory: list[torch.Tensor] = field(default_factory=list)
    """Pinned bytes of each place."""
    outgrown: list[torch.Tensor] = field(default_factory=list)
    """Smaller ones of earlier: recordings know their addresses."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Offload:
        """A copied model starts with nothing on its way."""
        return Offload()

    def put(self, tensor: torch.Tensor) -> Away:
        """Start moving a tensor out; its memory is free when the copy is done."""
        tensor = tensor.detach()
        self.waiting = [one for one in self.waiting if one() is not None]
        if any(owner() is None for owner, _, _ in self.coming):
            self.arrive(None)
        place = self._free_place()
        if not tensor.is_cuda or shares_memory(tensor.device):
            return self._waiting(Away(self, tensor, tensor.device, place))
        host = self._host(place, tensor)
        self.leaving.append((tensor, self.copy(host, tensor)))
        self.settle(_ON_THEIR_WAY)
        return self._waiting(Away(self, host, tensor.device, place))

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> Any:
        """Copy on the stream of their own after what has been launched so far; returns its end."""
        device = source.device if source.is_cuda else target.device
        if device not in self.streams:
            self.streams[device] = torch.cuda.Stream(device)
        stream = self.streams[device]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)
            return stream.record_event()

    def settle(self, most: int) -> None:
        """The computing stream waits for all copies out but the last `most`; their tensors' memory is free."""
        while len(self.leaving) > most:
            tensor, done = self.leaving.pop(0)
            torch.cuda.current_stream(tensor.device).wait_event(done)

    def arrive(self, away: Away | None) -> None:
        """The computing stream waits for the copy back of one input, or (None) of those that nobody waits for."""
        kept = []
        for owner, back, arrived in self.coming:
            if owner() is away:
                torch.cuda.current_stream(back.device).wait_event(arrived)
            else:
                kept.append((owner, back, arrived))
        self.coming = kept

    def forget(self) -> None:
        """Nothing is on its way any more: the computing stream waits for all of it, and nobody will ask for it."""
        self.settle(0)
        for _, back, arrived in self.coming:
            torch.cuda.current_stream(back.device).wait_event(arrived)
        self.coming, self.waiting = [], []

    def before(self, away: Away) -> None:
        """Start the copy of what was put before `away`, which is forgotten here."""
        place = next((place for place, one in enumerate(self.waiting) if one() is away), None)
        if place is None:
            return
        del self.waiting[place:]
        if self.waiting and (last := self.waiting[-1]()) is not None:
            last.fetch()

    def _waiting(self, away: Away) -> Away:
        self.waiting.append(weakref.ref(away))
        return away

    def _free_place(self) -> int:
        taken = {away.place for one in self.waiting if (away := one()) is not None}
        return next(place for place in range(len(taken) + 1) if place not in taken)

    def _host(self, place: int, like: torch.Tensor) -> torch.Tensor:
        needed = like.numel() * like.element_size()
        if place == len(self.memory):
            self.memory.append(torch.empty(needed, dtype=torch.uint8, pin_memory=True))
        elif self.memory[place].numel() < needed:  # at least doubled: what is outgrown stays less than what is in use
            self.outgrown.append(self.memory[place])
            size = max(needed, 2 * self.memory[place].numel())
            self.memory[place] = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        return self.memory[place][:needed].view(like.dtype).view(like.shape)
