"""Stops a run before its machine has no memory left, with a checkpoint to go on from.

Where the GPU has the machine's own memory, running out of it is no error that anyone could catch: the machine stands
still. So after every optimizer step the kernel is asked what is available (a file of two kilobytes), and the run stops
while there is room to write: when the reserve of `hasten.hardware.memory` is reached, or would be by one more fall like
the last two. One fall alone, as when the first step takes its memory, stops nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hasten.errors import TrainingError
from hasten.hardware.memory import Budget, budget, read_cgroup, read_meminfo, said
from hasten.hardware.probe import Hardware

REMEDY = (
    "Close what else uses memory, lower data.max_length or training.batch_size, or use load_in_4bit; then resume the "
    "run. training.watch_memory: off runs without this watch."
)


def host_budget(hardware: Hardware) -> Budget:
    """What the machine still has above its reserve; memory that torch holds unused is not the machine's any more."""
    return budget("unified" if hardware.unified_memory else "cpu", meminfo=read_meminfo(), cgroup=read_cgroup())


class Watchdog(TrainerCallback):
    """Looks at the machine's memory after every step.

    Args:
        read: what is left above the reserve, `host_budget`.
        remedy: what to do after it has stopped.
    """

    def __init__(self, read: Callable[[], Budget], remedy: str = REMEDY) -> None:
        self.read, self.remedy = read, remedy
        self.left: list[int] = []
        """Bytes above the reserve, at the last reads."""
        self.found: Budget | None = None
        """What was read when the run had to stop; None: it did not have to."""
        self.step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A trainer may train again."""
        self.left, self.found = [], None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save and stop where memory runs out."""
        now = self.read()
        self.left = [*self.left[-2:], now.bytes]
        if self.found is None and runs_out(self.left) and state.global_step < state.max_steps:  # else it is done
            self.found, self.step = now, state.global_step
        if self.found is not None:
            control.should_save = control.should_training_stop = True

    def raise_if_stopped(self) -> None:
        """Say why the run ended.

        Raises:
            TrainingError: it had to stop.
        """
        if self.found is None:
            return
        falls = " -> ".join(said(left) for left in self.left)
        raise TrainingError(
            "available memory",
            f"{falls} above the reserve after the last steps ({self.found.rule})",
            f"Training stopped at step {self.step} with a complete checkpoint: without memory the whole machine "
            "stands still, or the kernel ends the process.",
            self.remedy,
        )


def runs_out(left: list[int]) -> bool:
    """Whether nothing is left, or nothing would be after one more fall like the last two.

    Args:
        left: bytes above the reserve at up to three reads, the newest last.
    """
    if left[-1] <= 0:
        return True
    if len(left) < 3:
        return False
    fall = min(left[-3] - left[-2], left[-2] - left[-1])
    return fall > 0 and left[-1] - fall <= 0
