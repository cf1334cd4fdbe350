"""Steps that have been launched: their numbers are read when the device has them, so that nobody waits for it.

Reading a number from a GPU (`Tensor.item`) waits until everything launched before it is done, and the GPU is idle from
then until the next step is launched. So the numbers of a step set out for the processor's memory behind the step's own
work, and they are read once the next step has been launched. On a CPU there is nothing to wait for.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch


class Moment:
    """A point in the device's work, put there now and passed when all that was launched before it is done.

    Args:
        device: whose work it is; on a CPU the moment has passed at once.
    """

    def __init__(self, device: torch.device) -> None:
        self.time = time.perf_counter()
        self.event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
        if self.event is not None:
            self.event.record(torch.cuda.current_stream(device))

    def wait(self) -> None:
        """Until it has passed."""
        if self.event is not None:
            self.event.synchronize()

    def seconds_since(self, earlier: Moment) -> float:
        """The device's own time between two moments that have passed."""
        if self.event is None or earlier.event is None:
            return self.time - earlier.time
        return earlier.event.elapsed_time(self.event) / 1000


@dataclass
class StepCounts:
    """What one optimizer step has read, over all ranks."""

    supervised: int = 0
    real: int = 0
    started: Moment | None = None


class LaunchedStep:
    """An optimizer step whose loss and gradient norm are on their way.

    Args:
        number: of the step.
        epoch: after it.
        learning_rate: that it was made with.
        counts: what it has read.
        loss: on the device, no dimensions.
        grad_norm: before clipping, likewise.
    """

    def __init__(
        self,
        *,
        number: int,
        epoch: float,
        learning_rate: float,
        counts: StepCounts,
        loss: torch.Tensor,
        grad_norm: torch.Tensor,
    ) -> None:
        self.number, self.epoch, self.learning_rate, self.counts = number, epoch, learning_rate, counts
        # The norm of a step without gradients is on the processor.
        numbers = torch.stack([loss.float(), grad_norm.to(loss.device, torch.float32, non_blocking=True)])
        # From a GPU torch copies without a wait into pinned memory of its own, whose content is there after `ended`.
        self.numbers = numbers.to("cpu", non_blocking=loss.is_cuda)
        self.ended = Moment(loss.device)

    def read(self, began: Moment) -> dict[str, float]:
        """Its entry of the log; waits for the device if the step is not done.

        Args:
            began: when training did.
        """
        self.ended.wait()
        loss, grad_norm = self.numbers.tolist()
        assert self.counts.started is not None, "a step that was launched has begun"
        return {
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": self.learning_rate,
            "supervised_tokens": self.counts.supervised,
            "real_tokens": self.counts.real,
            "step_s": self.ended.seconds_since(self.counts.started),
            "elapsed_s": self.ended.seconds_since(began),
        }
