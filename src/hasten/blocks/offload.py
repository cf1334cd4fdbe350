"""Inputs of layers that wait in the computer's own memory between forward and backward.

Copies run on a stream of their own. The backward asks for inputs in the reverse order of the forward, so each request
also starts the copy of the one before it: it travels while the layer computes. Not for unified memory, where both ends
are the same memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Away:
    """One tensor that was moved out."""

    owner: Offload
    host: torch.Tensor
    device: torch.device
    done: Any = None
    back: torch.Tensor | None = None
    arrived: Any = None

    def fetch(self) -> None:
        """Start the copy back, if nobody has."""
        if self.back is not None:
            return
        if self.device.type != "cuda":
            self.back = self.host
            return
        stream = self.owner.stream(self.device)
        stream.wait_event(self.done)
        with torch.cuda.stream(stream):
            self.back = self.host.to(self.device, non_blocking=True)
            self.arrived = stream.record_event()

    def get(self) -> torch.Tensor:
        """The tensor, back on its device; the one put before it is started too."""
        self.fetch()
        self.owner.before(self)
        back = self.back
        assert back is not None
        if self.arrived is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(self.arrived)
            back.record_stream(current)
        self.back = None
        return back


@dataclass
class Offload:
    """Keeps the order of what was moved out in one forward."""

    waiting: list[Away] = field(default_factory=list)
    streams: dict[torch.device, Any] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> Offload:
        """A copied model starts with nothing on its way."""
        return Offload()

    def stream(self, device: torch.device) -> Any:
        """The copies' own stream."""
        if device not in self.streams:
            self.streams[device] = torch.cuda.Stream(device)
        return self.streams[device]

    def put(self, tensor: torch.Tensor) -> Away:
        """Start moving a tensor out; its memory is free when the copy is done."""
        if not tensor.is_cuda:
            away = Away(self, tensor.detach(), tensor.device)
            self.waiting.append(away)
            return away
        stream = self.stream(tensor.device)
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        stream.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(stream):
            host.copy_(tensor.detach(), non_blocking=True)
            done = stream.record_event()
        tensor.record_stream(stream)
        away = Away(self, host, tensor.device, done)
        self.waiting.append(away)
        return away

    def before(self, away: Away) -> None:
        """Start the copy of what was put before `away`, which is forgotten here."""
        place = next((place for place, one in enumerate(self.waiting) if one is away), None)
        if place is None:
            return
        del self.waiting[place:]
        if self.waiting:
            self.waiting[-1].fetch()
