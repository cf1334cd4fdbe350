"""Progress of writing files: a bar with bytes on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

_BETWEEN_LINES_S = 10.0


@contextmanager
def bytes_progress(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Shows how many bytes of what are done, while the block lasts.

    Args:
        console: from `make_console`.

    Yields:
        A function that is told what is being written, bytes done, and bytes in all.
    """
    if console.is_terminal and not console.is_dumb_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as bar:
            tasks: dict[str, TaskID] = {}

            def show(what: str, done: int, of: int) -> None:
                if what not in tasks:
                    tasks[what] = bar.add_task(what, total=of)
                bar.update(tasks[what], completed=done, total=of)

            yield show
        return
    said = time.monotonic()

    def say(what: str, done: int, of: int) -> None:
        nonlocal said
        if time.monotonic() - said >= _BETWEEN_LINES_S:
            said = time.monotonic()
            console.print(
                f"{what}: {done / 2**20:,.0f} of {of / 2**20:,.0f} MiB written", highlight=False, soft_wrap=True
            )

    yield say
