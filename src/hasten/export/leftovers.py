"""What an export writes before it is verified has an owner, and what killed exports left is removed by the next one.

An export's folders are called ``.unverified-WHAT-TOKEN``. One of them, ``.unverified-job-TOKEN``, says whose they are:
a status file like a run's, with the process, when that began, its machine and a heartbeat. Only folders beside such a
file are ever removed, so nothing is that hasten did not make.

Process numbers mean something only among processes that see each other: on one machine, since it was started, and on
Linux in one container (a namespace of process numbers). There the process is looked up; of every other machine the
heartbeat must have been silent for an hour, since clocks differ and a disk may have been away. Linux gives every start
a number of its own. Elsewhere a machine is its name (several can have it), the address of its network card (no two
have it) and when it was started. A card that was exchanged or a clock that was set makes a machine another one, which
costs that hour and nothing else.
"""

from __future__ import annotations

import platform
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from hasten.errors import RunError
from hasten.files import storing, write_text
from hasten.runs.status import LIVE_STATES, StatusWriter, effective_state, read_status

DRAFT = ".unverified-"
_JOB = re.compile(rf"{re.escape(DRAFT)}job-(?P<token>[0-9a-f]{{8}})")
_STATUS, _MACHINE, _SCRATCH = "status.json", "machine", "scratch"
_SILENT_S = 3600.0
_OF_LINUX = ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid")


def draft(output: Path, what: str, token: str) -> Path:
    """Where something lies until it is verified.

    Args:
        output: the folder of all targets.
        what: letters, digits and ``-``.
        token: the export's own, 8 hexadecimal digits, so that two at once do not meet.
    """
    return output / f"{DRAFT}{what}-{token}"


@contextmanager
def owned(output: Path, token: str) -> Iterator[Path]:
    """Say whose drafts these are, for as long as the block lasts.

    Args:
        output: the folder of all targets, which exists.
        token: the export's own.

    Yields:
        An empty folder for files that only the export itself reads. It is removed at the end.

    Raises:
        StorageError: it cannot be made.
    """
    folder = draft(output, "job", token)
    with storing(folder):
        folder.mkdir()
    try:
        write_text(folder / _MACHINE, _machine())
        with StatusWriter(folder / _STATUS, message="export"):
            with storing(folder):
                (folder / _SCRATCH).mkdir()
            yield folder / _SCRATCH
    finally:
        remove(folder)


def remove(folder: Path) -> None:
    """Remove a draft of one's own. What cannot be removed now ends no export: its owner has finished, so the next one
    removes it. Another may have done so already, and disks of other machines keep files that are still open.
    """
    shutil.rmtree(folder, ignore_errors=True)


def remove_left(output: Path) -> list[str]:
    """Remove what exports left that do not live any more.

    Args:
        output: the folder of all targets.

    Returns:
        Sentences about what was removed, and what was not.
    """
    notes: list[str] = []
    for job in sorted(output.glob(f"{DRAFT}job-*")):
        found = _JOB.fullmatch(job.name)
        if found is None or job.is_symlink() or not job.is_dir():
            continue
        host = _owner(job)
        if host is not None:
            if host != platform.node():
                notes.append(f"'{job.name}' stays: an export on '{host or 'an unknown machine'}' may be writing it")
            continue
        folders = [*_drafts(output, found["token"]), job]  # the job last: cut short, it is found again
        size = sum(_bytes(folder) for folder in folders)
        for folder in folders:
            with suppress(OSError):  # another export removes it too, or it is another user's
                shutil.rmtree(folder)
        kept = next((folder for folder in folders if folder.exists()), None)
        notes.append(
            f"an export that was killed had left {len(folders)} folders ({size / 2**20:,.1f} MiB): removed"
            if kept is None
            else f"an export that was killed left '{kept.name}', which cannot be removed"
        )
    return notes


def _drafts(output: Path, token: str) -> list[Path]:
    """Folders of one export but the job's own, with those that are renamed to them when they are whole."""
    name = re.compile(rf"\.?{re.escape(DRAFT)}(?!job-)[a-z0-9-]+-{token}(\.[0-9a-f]{{12}}\.tmp)?")
    return sorted(
        path for path in output.iterdir() if name.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    )


def _owner(job: Path) -> str | None:
    """The machine of an export that lives or may live; None: it does not."""
    try:
        status = read_status(job / _STATUS)
        machine = (job / _MACHINE).read_text("utf-8")
    except (RunError, OSError, UnicodeDecodeError):  # killed before it had said anything
        return "" if _age(job) < _SILENT_S else None
    if status.state not in LIVE_STATES:
        return None
    if machine == _machine():
        return status.host if effective_state(status) in LIVE_STATES else None
    return status.host if time.time() - status.heartbeat < _SILENT_S else None


def _machine() -> str:
    """Within which process numbers mean the same."""
    parts = [platform.node()]
    try:
        parts += [Path(_OF_LINUX[0]).read_text("utf-8").strip(), str(Path(_OF_LINUX[1]).stat().st_ino)]
    except OSError:  # not Linux
        parts += _elsewhere()
    return " ".join(parts)


def _elsewhere() -> list[str]:
    """A machine's network card, and the minute in which it was started (systems compute that from clocks)."""
    card, found = uuid.getnode(), []
    if not card >> 40 & 1:  # Python makes up an address with this bit, another in every process, where there is none
        found.append(f"{card:012x}")
    with suppress(OSError, psutil.Error):
        found.append(f"{psutil.boot_time() / 60:.0f}")
    return found


def _age(folder: Path) -> float:
    try:
        return time.time() - folder.stat().st_mtime
    except OSError:  # removed meanwhile: nothing is left to do
        return 0.0


def _bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.lstat().st_size
    return total
