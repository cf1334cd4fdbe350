"""Signals to a running job: a closed terminal is ignored; Ctrl-C and SIGTERM first ask it to stop, then end it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich.console import Console

from hasten.errors import StorageError
from hasten.files import storing
from hasten.runs.folder import RunFolder


@contextmanager
def job_signals(run: RunFolder, console: Console) -> Iterator[None]:
    """Handle signals for the length of the block; the handlers of before are back afterwards.

    The first Ctrl-C (or SIGTERM, which schedulers and containers send) is a request to stop after this step with a
    checkpoint, the same as `hasten stop`; the second raises `KeyboardInterrupt` at once. SIGHUP, which a terminal sends
    when it is closed, is ignored. Outside the main thread, where Python allows no handlers, nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        try:
            with storing(run.control):
                (run.control / "stop").touch()
        except StorageError as cause:
            raise KeyboardInterrupt from cause
        console.print("\nstopping after this step, with a checkpoint; once more to leave at once", highlight=False)

    handlers: dict[int, Any] = {signal.SIGINT: stop, signal.SIGTERM: stop}
    if hasattr(signal, "SIGHUP"):
        handlers[signal.SIGHUP] = signal.SIG_IGN
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
