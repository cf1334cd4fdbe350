"""Which checkpoints of a run are whole.

The last file that is written into one is `complete`, with the sizes of the others. Of a checkpoint that a crash or a
full disk has cut off it is missing; of one that was cut off later, in a copy or by a loss of power, the sizes differ.
"""

from __future__ import annotations

import json
from pathlib import Path

from hasten.files import write_json

COMPLETE = "complete"
_OF_ANOTHER_PROCESS = "rng_state_"
"""Each process writes its own, and may be at it while the first one marks."""


def mark(folder: Path) -> None:
    """Say that everything of a checkpoint is written."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != COMPLETE]
    sizes = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(files)
        if not path.name.startswith(_OF_ANOTHER_PROCESS)
    }
    write_json(folder / COMPLETE, sizes)


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint is marked, and each file has the size that it had then."""
    try:
        text = (folder / COMPLETE).read_text(encoding="utf-8")
        sizes = json.loads(text) if text else {}  # hasten 0.1 before sizes: a mark alone
        return isinstance(sizes, dict) and all((folder / name).stat().st_size == sizes[name] for name in sizes)
    except (OSError, ValueError):
        return False


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in a run's `checkpoints`, or None."""
    return next((path for path in reversed(_by_step(folder)) if is_whole(path)), None)


def left_out(folder: Path, taken: Path | None) -> list[str]:
    """Names of the checkpoints that are newer than the one that was taken: they are not whole."""
    there = _by_step(folder)
    return [path.name for path in (there if taken is None else there[there.index(taken) + 1 :])]


def _by_step(folder: Path) -> list[Path]:
    named = {path: path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")}
    return sorted((path for path, step in named.items() if step.isdecimal()), key=lambda path: int(named[path]))
