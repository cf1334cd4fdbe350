"""Peak memory of a process without what it has mapped from files, as Linux tells it.

A file that is mapped counts as resident while its pages are in the page cache, which others may take back at any time.
So `RssAnon` of /proc/PID/status is read a hundred times a second, and the most is kept; `VmHWM`, which the kernel
keeps itself, counts mapped files too.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_SECONDS = 0.01


@dataclass
class Peak:
    """Bytes; filled in at the end."""

    start_bytes: int = 0
    anonymous_bytes: int = 0

    @property
    def above_start_bytes(self) -> int:
        """What was taken since."""
        return self.anonymous_bytes - self.start_bytes


def anonymous_bytes(pid: int | str = "self") -> int:
    """What a process has in memory that is no file's; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)


@contextmanager
def watched(pid: int | str = "self") -> Iterator[Peak]:
    """Reads a process's memory until the block ends."""
    first = anonymous_bytes(pid)
    found, done = Peak(first, first), threading.Event()

    def watch() -> None:
        while not done.wait(_SECONDS):
            found.anonymous_bytes = max(found.anonymous_bytes, anonymous_bytes(pid))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()
        found.anonymous_bytes = max(found.anonymous_bytes, anonymous_bytes(pid))
