"""Writing files so that a crash, a full disk or a second reader never sees half of one.

Everything is written to a temporary name beside its target and renamed: on POSIX and NTFS a rename within one folder
is atomic, so a reader finds the old content or the new, nothing between.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from hasten.errors import StorageError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM)
_IN_THE_WAY = (errno.EEXIST, errno.ENOTDIR)
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def storage_error(path: Path, cause: OSError) -> StorageError:
    """Translate an operating system error about `path` into one sentence with a remedy."""
    rule = "hasten writes here."
    if cause.errno in _DISK_FULL:
        value, rule, remedy = "no space left on the disk", "Nothing was left half-written.", "Free some space or choose"
    elif cause.errno in _FORBIDDEN:
        value, remedy = "not writable by this user", "Change its permissions or choose"
    elif cause.errno == errno.EROFS:
        value, remedy = "its file system is mounted read-only", "Mount it for writing or choose"
    elif cause.errno in _IN_THE_WAY:
        value, remedy = "a file is in the way", "Move that file or choose"
    elif cause.errno == errno.EISDIR:
        value, remedy = "a folder is in the way", "Move that folder or choose"
    else:
        value, remedy = f"could not be written ({cause.strerror or cause})", "Choose"
    return StorageError(str(path), value, rule, f"{remedy} another folder.")


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
        full = "no space left" in str(cause).lower()
        raise storage_error(path, OSError(errno.ENOSPC if full else errno.EIO, str(cause))) from cause


def make_folder(path: Path) -> Path:
    """Create a folder (and its parents) and prove that it can be written; `StorageError` otherwise."""
    with storing(path):
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    return path


def write_text(path: Path, text: str) -> None:
    """Replace a text file (UTF-8) atomically."""
    temporary = _beside(path)
    try:
        with storing(path):
            with temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        with suppress(OSError):  # not there, or not to be reached: what went wrong before is what counts
            temporary.unlink()


def write_json(path: Path, value: object) -> None:
    """Replace a JSON file (UTF-8, indented) atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    # Half a surrogate pair (a file name in another encoding, a broken row) has no UTF-8, but JSON can spell it.
    text = _LONE_SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    write_text(path, text + "\n")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Fill a temporary folder and rename it to `path` at the end; nothing is left behind when the block fails.

    An existing folder at `path` is replaced only after the new one is complete and on the disk.
    """
    temporary = _beside(path)
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    try:
        with storing(path):
            with native_path(temporary) as target:
                yield target
            _flush(temporary)
            put(temporary, path)
    finally:
        with suppress(OSError):  # as above
            if temporary.exists():
                shutil.rmtree(temporary)


@contextmanager
def native_path(path: Path) -> Iterator[Path]:
    """A folder's path as libraries written in Rust can take it: as valid UTF-8.

    Under an ASCII locale Python spells the bytes of `ä` in a path as surrogates, which tokenizers refuses. Then the
    folder is reached through a temporary link for as long as the block lasts.
    """
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory(prefix="hasten-") as temporary:
            link = Path(temporary) / "folder"
            link.symlink_to(path.absolute(), target_is_directory=True)
            yield link
    else:
        yield path


def require_writable(path: Path) -> None:
    """Refuse a folder that could not be made or written, without making it.

    Raises:
        StorageError: its nearest existing parent is a file or is not writable.
    """
    existing = path.absolute()
    with storing(path):
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
    if not existing.is_dir():
        raise StorageError(
            str(path), f"'{existing}' is a file", "hasten writes a folder here.", "Choose another folder."
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        number = errno.EROFS if _read_only(existing) else errno.EACCES
        raise storage_error(existing, OSError(number, os.strerror(number)))


def require_space(folder: Path, need: int, what: str, shown: Path | None = None) -> None:
    """Refuse before anything is written what a disk cannot hold.

    Args:
        folder: where it goes, there or not.
        need: bytes.
        what: the beginning of a sentence that ends with their number.
        shown: the folder that the error names, if it is another.

    Raises:
        StorageError: with both numbers.
    """
    existing = folder.expanduser().absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if need > free:
        unit, name = (1e9, "GB") if need >= 1e9 else (1e6, "MB")
        raise StorageError(
            str(shown or folder),
            f"{free / unit:.1f} {name} are free",
            f"{what} {need / unit:.1f} {name}.",
            "Free some space or choose another folder.",
        )


def _read_only(folder: Path) -> bool:
    if not hasattr(os, "statvfs"):  # Windows
        return False
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


def _beside(path: Path) -> Path:
    """A name for the unfinished version of `path`, its own in every call: threads and processes may write at once."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


def _flush(folder: Path) -> None:
    # A rename may reach the disk before the content does: after a power cut, a complete name on empty files.
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("r+b") as opened:
                os.fsync(opened.fileno())


def put(new: Path, path: Path) -> None:
    """Give a finished file or folder its name; what had it before stays until then."""
    if not path.exists():
        new.replace(path)
        return
    old = _beside(path)
    path.replace(old)
    try:
        new.replace(path)
    except OSError:
        old.replace(path)
        raise
    if old.is_dir() and not old.is_symlink():  # of a link, the link alone is replaced
        shutil.rmtree(old)
    else:
        old.unlink()
