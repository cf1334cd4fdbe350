"""Progress of reading and tokenizing rows: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_BETWEEN_LINES_S = 10.0


@contextmanager
def rows_progress(console: Console, total: int) -> Iterator[Callable[[int], None]]:
    """Shows how many rows are done, while the block lasts.

    Args:
        console: from `make_console`.
        total: how many rows there are.

    Yields:
        A function that is told of finished rows; nothing is shown of what takes no time.
    """
    if console.is_terminal and not console.is_dumb_terminal:
        columns = (TextColumn("rows"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as bar:
            task = bar.add_task("rows", total=total)
            yield lambda count: bar.advance(task, count)
        return
    done, said = 0, time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, said
        done += count
        if time.monotonic() - said >= _BETWEEN_LINES_S:
            said = time.monotonic()
            console.print(f"rows: {done:,} of {total:,} prepared", highlight=False, soft_wrap=True)

    yield advance
