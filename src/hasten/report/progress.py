"""Progress of a training for people: a live bar on a terminal, a dozen plain lines in a log file."""

from __future__ import annotations

import math
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

_LINES = 12


class TrainingProgress:
    """Shows how far a training is. Usable as a context manager.

    Args:
        console: from `make_console`.
        total_steps: optimizer steps planned.
    """

    def __init__(self, console: Console, total_steps: int) -> None:
        self.console, self.total_steps = console, total_steps
        self._live: Progress | None = None
        self._task = TaskID(0)
        self._started_s = 0.0
        self._first_step: int | None = None
        self._line = ""  # the newest plain line, and whether it was printed
        self._printed = True
        self._next_line = 1

    def __enter__(self) -> TrainingProgress:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish()

    def start(self) -> None:
        """Begin; shows the empty bar on a terminal."""
        self._started_s = time.monotonic()
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            # The standard streams stay the caller's: rich would otherwise put its own objects in their place.
            self._live = Progress(
                TextColumn("training"),
                BarColumn(bar_width=None),
                TextColumn("{task.completed}/{task.total}"),
                TextColumn("{task.fields[figures]}", markup=False),
                console=self.console,
                expand=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
            self._task = self._live.add_task("training", total=self.total_steps, figures="")

    def update(
        self,
        step: int,
        loss: float | None,
        supervised_tokens_per_s: float | None,
        eta_s: float | None = None,
    ) -> None:
        """Show one step.

        Args:
            step: optimizer steps done, from 1.
            loss: its training loss; None or NaN are shown as such.
            supervised_tokens_per_s: speed; None while unknown.
            eta_s: seconds left; measured here when not given.
        """
        if self._first_step is None:
            self._first_step = step
        figures = _figures(loss, supervised_tokens_per_s, self._left_s(step) if eta_s is None else eta_s)
        if self._live:
            self._live.update(self._task, completed=step, figures=figures)
            return
        width = len(str(self.total_steps))
        self._line, self._printed = f"step {step:>{width}}/{self.total_steps}  {figures}", False
        if step == self._first_step or step >= min(self._next_line, self.total_steps):
            self._print_line()
            every = max(1, math.ceil(self.total_steps / _LINES))
            self._next_line = (step // every + 1) * every

    def note(self, text: str) -> None:
        """Say something in between, above the bar.

        Args:
            text: shown as it is, without markup.
        """
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def finish(self) -> None:
        """End; the bar, or the line of the last step, stays. A second call does nothing."""
        if self._live:
            self._live.stop()
            self._live = None
        self._print_line()

    def _print_line(self) -> None:
        if not self._printed:
            self.note(self._line)
            self._printed = True

    def _left_s(self, step: int) -> float | None:
        # From the second step on: the first one pays for loading and compiling.
        first = self._first_step or 0
        if step <= first:
            self._started_s = time.monotonic()
            return None
        return (time.monotonic() - self._started_s) / (step - first) * max(0, self.total_steps - step)


def _figures(loss: float | None, tokens_per_s: float | None, left_s: float | None) -> str:
    parts = ["loss -" if loss is None else f"loss {loss:.4f}"]
    if tokens_per_s is not None:
        parts.append(f"{tokens_per_s:,.0f} tok/s")
    if left_s is not None and math.isfinite(left_s):
        parts.append(f"{duration(left_s)} left")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """A time span for people: ``8s``, ``2m05s``, ``3h07m``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02}m"
