"""The one folder that hasten writes to outside of runs and outputs, and how it is emptied.

Everything in it can be made again. Only what hasten made is removed: entries whose names are of the form it gives, in
folders that are no links. The rest stays and is named.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from hasten.errors import ConfigError, StorageError, did_you_mean

CACHE = Path.home() / ".cache" / "hasten"


@dataclass(frozen=True)
class Kind:
    """One folder of the cache."""

    name: str
    what: str
    entry: re.Pattern[str]
    """What names of its entries look like; unfinished ones begin with a dot."""


KINDS = (
    Kind(
        "models",
        "models converted from GGUF files, Ollama and the embedded one",
        re.compile(r".+-[0-9a-f]{16}-v\d+|\.demo-.+|\..+-[0-9a-f]{16}-v\d+\.[0-9a-f]{12}\.tmp"),
    ),
    Kind("data", "prepared rows", re.compile(r"[0-9a-f]{64}|\.unfinished-.+")),
    Kind("judges", "programs of others that our tests compare with", re.compile(r"[A-Za-z0-9].*")),
)


@dataclass(frozen=True)
class Content:
    """What one kind takes up."""

    kind: Kind
    path: Path
    entries: tuple[Path, ...]
    bytes: int


@dataclass
class Cleared:
    """What clearing did."""

    removed: list[Path] = field(default_factory=list)
    bytes: int = 0
    left: list[Path] = field(default_factory=list)
    """What stays, because hasten did not make it."""


def contents(cache: Path = CACHE) -> list[Content]:
    """What is in the cache, by kind; links are counted as what they are, not as what they point to.

    Raises:
        StorageError: the cache is a link or a file, or cannot be read.
    """
    _require_ours(cache)
    return [_content(kind, cache / kind.name) for kind in KINDS]


def foreign(cache: Path = CACHE) -> list[Path]:
    """What lies in the cache and is not hasten's.

    Raises:
        StorageError: as `contents`.
    """
    _require_ours(cache)
    names = {kind.name for kind in KINDS}
    found = [path for path in _entries(cache) if path.name not in names]
    for kind in KINDS:
        if (cache / kind.name).is_dir():
            found += [path for path in _entries(cache / kind.name) if not kind.entry.fullmatch(path.name)]
    return found


def kinds_named(name: str | None) -> tuple[Kind, ...]:
    """The kinds that a name means; all of them for None.

    Raises:
        ConfigError: there is no such kind.
    """
    if name is None:
        return KINDS
    names = [kind.name for kind in KINDS]
    if name not in names:
        rule = f"The cache has {', '.join(names)}."
        raise ConfigError("KIND", f"'{name}'", rule, did_you_mean(name, names, "Leave it out to clear all of them."))
    return tuple(kind for kind in KINDS if kind.name == name)


def clear(kinds: tuple[Kind, ...] = KINDS, cache: Path = CACHE) -> Cleared:
    """Remove what hasten keeps in the cache; folders that are empty afterwards go too, the cache's own among them.

    A link inside is removed, never followed.

    Args:
        kinds: from `kinds_named`.
        cache: the folder.

    Raises:
        StorageError: the cache, or the folder of a kind, is a link or a file, or something cannot be removed. Folders
            of all kinds are looked at before anything is removed.
    """
    _require_ours(cache)
    for kind in kinds:
        _require_ours(cache / kind.name)
    done = Cleared()
    for kind in kinds:
        content = _content(kind, cache / kind.name)
        for entry in content.entries:
            size = _bytes(entry)
            _remove(entry)
            done.removed.append(entry)
            done.bytes += size
        _remove_empty(content.path)
    _remove_empty(cache)
    done.left = foreign(cache)
    return done


def _require_ours(folder: Path) -> None:
    rule = "hasten empties folders that it made."
    if folder.is_symlink():
        remedy = "Look at what it points to and remove that yourself, then the link."
        raise StorageError(str(folder), f"a link to '{os.readlink(folder)}'", rule, remedy)
    if folder.exists() and not folder.is_dir():
        raise StorageError(str(folder), "a file", rule, "Move it away.")


def _content(kind: Kind, path: Path) -> Content:
    _require_ours(path)
    entries = tuple(entry for entry in _entries(path) if kind.entry.fullmatch(entry.name))
    return Content(kind=kind, path=path, entries=entries, bytes=sum(_bytes(entry) for entry in entries))


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as cause:
        raise _error(folder, "cannot be read", cause) from cause


def _bytes(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; what vanishes meanwhile counts nothing."""
    total = 0
    with contextlib.suppress(OSError):
        total += path.lstat().st_size if path.is_symlink() or not path.is_dir() else 0
    if path.is_symlink() or not path.is_dir():
        return total
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(folder) / name).lstat().st_size
    return total


def _remove(path: Path) -> None:
    try:
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        else:
            shutil.rmtree(path)  # removes links below it and does not follow them
    except FileNotFoundError:  # another process was faster
        return
    except OSError as cause:
        raise _error(path, "cannot be removed", cause) from cause


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not there, or something of others is in it
        folder.rmdir()


def _error(path: Path, what: str, cause: OSError) -> StorageError:
    return StorageError(
        str(path), f"{what} ({cause.strerror or cause})", "The cache belongs to its user.", "Change its permissions."
    )
