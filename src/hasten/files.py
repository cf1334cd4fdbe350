"""Writing files so that a crash, a full disk or a second reader never sees half of one.

Everything is written to a temporary name beside its target and renamed: on POSIX and NTFS a rename within one folder
is atomic, so a reader finds the old content or the new, nothing between.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from hasten.errors import StorageError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def storage_error(path: Path, cause: OSError) -> StorageError:
    """Translate an operating system error about `path` into one sentence with a remedy."""
    if cause.errno in _DISK_FULL:
        return StorageError(
            str(path), "no space left on the disk", "Nothing was left half-written.", "Free some space or choose another folder."
        )
    if cause.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StorageError(
            str(path), "not writable by this user", "hasten writes here.", "Change its permissions or choose another folder."
        )
    return StorageError(
        str(path), f"could not be written ({cause.strerror or cause})", "hasten writes here.", "Choose another folder."
    )


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn operating system errors inside the block into `StorageError` about `path`."""
    try:
        yield
    except StorageError:
        raise
    except OSError as cause:
        raise storage_error(path, cause) from cause
    except SafetensorError as cause:  # its writer reports a full disk with an exception class of its own
        raise storage_error(path, OSError(_DISK_FULL[0] if "space" in str(cause) else 0, str(cause))) from cause


def make_folder(path: Path) -> Path:
    """Create a folder (and its parents) and prove that it can be written; `StorageError` otherwise."""
    with storing(path):
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    return path


def write_text(path: Path, text: str) -> None:
    """Replace a text file (UTF-8) atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with storing(path):
            with temporary.open("w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Replace a JSON file (UTF-8, indented) atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Fill a temporary folder and rename it to `path` at the end; nothing is left behind when the block fails.

    An existing folder at `path` is replaced only after the new one is complete.
    """
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        temporary.chmod(0o755)
    try:
        with storing(path):
            yield temporary
            if path.exists():
                old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
                path.replace(old / path.name)
                temporary.replace(path)
                shutil.rmtree(old)
            else:
                temporary.replace(path)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)


def require_writable(path: Path) -> None:
    """Refuse a folder that could not be made or written, without making it.

    Raises:
        StorageError: its nearest existing parent is a file or is not writable.
    """
    existing = path.expanduser().absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise StorageError(str(path), f"'{existing}' is a file", "hasten writes a folder here.", "Choose another folder.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise storage_error(existing, PermissionError(errno.EACCES, "not writable"))
