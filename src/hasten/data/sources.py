"""Where rows come from: files, folders, data sets of the hub, Python's own documentation, or objects of a program.

A name is looked for on this machine first and asked for elsewhere only when nothing here has it, so a path never causes
a request. Several names become one mixture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hasten.data.readers.folder import is_saved, open_folder, open_saved
from hasten.data.readers.hub_set import is_hub_id, open_hub_set
from hasten.data.readers.kinds import open_file
from hasten.data.readers.objects import open_object
from hasten.data.rows import ListRows, Mixture, RowSource
from hasten.data.settings import DataSettings
from hasten.data.stdlib_docs import question_rows
from hasten.errors import ConfigError, DataError, nearest

PYTHON_DOCS = "python-docs"
_RULE = f"Data is a file, a folder, a data set of the hub, or '{PYTHON_DOCS}'."


def open_rows(settings: DataSettings, rows: Any = None) -> RowSource:
    """The rows that a configuration names.

    Files are looked through, not kept: their rows are read when they are asked for. `settings.limit` is the caller's,
    except for what may have no end.

    Args:
        settings: the sources, their weights, and what to take of a data set.
        rows: rows of a program's instead of `settings.source`: a list of mappings, a `datasets` object, an iterable.

    Raises:
        ConfigError: settings that do not fit the sources.
        DataError: a source is missing, unreadable, empty, of another kind, or not valid; the place is named.
    """
    if rows is not None:
        return open_object(rows, settings)
    names = [settings.source] if isinstance(settings.source, str) else list(settings.source)
    _check_names(names)
    _check_weights(names, settings.weights)
    _check_choice(names, settings)
    sources = [_open(name, settings) for name in names]
    return sources[0] if len(sources) == 1 else Mixture(sources, settings.weights, settings.seed)


def _open(name: str, settings: DataSettings) -> RowSource:
    if name == PYTHON_DOCS:
        return ListRows(question_rows(), PYTHON_DOCS)
    path = _local(name)
    if path is None:
        if not is_hub_id(name) or _nearly_docs(name):
            raise DataError(name, "no such file", _RULE, _remedy(name))
        return open_hub_set(name, settings, _remedy(name))
    if not path.is_dir():
        return open_file(path, name)
    return open_saved(path, name, settings) if is_saved(path) else open_folder(path, name)


def _local(name: str) -> Path | None:
    """The file or folder of that name, if there is one."""
    try:
        path = Path(name).expanduser()
        if not path.exists():
            return None
    except (OSError, RuntimeError) as cause:  # a name that is too long, a folder that is closed, no such user
        reason = getattr(cause, "strerror", None) or str(cause)
        raise DataError(name, f"it cannot be read ({reason})", _RULE, "Check its spelling and permissions.") from cause
    if not path.is_dir() and not path.is_file():
        raise DataError(name, "no ordinary file", _RULE, "Write what it gives into a file.")
    return path


def _nearly_docs(name: str) -> bool:
    """A misspelt name of our own is not asked for elsewhere: someone might offer it there."""
    return nearest(name, [PYTHON_DOCS]) is not None


def _remedy(name: str) -> str:
    if "://" in name:
        return "Download it, and name the file."
    path = Path(name).expanduser()
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:  # no such folder either, or a closed one
        names = []
    if match := nearest(path.name, names):
        return f"Did you mean '{path.parent / match}'?"
    return f"Did you mean '{PYTHON_DOCS}'?" if _nearly_docs(name) else "Check the spelling and the working folder."


def _check_names(names: Sequence[str]) -> None:
    if not names or not all(name.strip() for name in names):
        raise ConfigError("data.source", repr(names), _RULE, "Name one.")


def _check_weights(names: Sequence[str], weights: Sequence[float]) -> None:
    if not weights:
        return
    if len(weights) != len(names):
        value = f"{len(weights)} for {len(names)} sources"
        raise ConfigError("data.weights", value, "Every source has one.", "Give as many as there are in data.source.")
    if not all(weight > 0 and math.isfinite(weight) for weight in weights):
        rule = "Every weight is a number above 0."
        raise ConfigError("data.weights", str(list(weights)), rule, "Leave the source out of data.source instead.")


def _check_choice(names: Sequence[str], settings: DataSettings) -> None:
    """Refuse a subset or split that no source could have: it would be ignored."""
    paths = [None if name == PYTHON_DOCS else _local(name) for name in names]
    hub = any(path is None and name != PYTHON_DOCS for name, path in zip(names, paths, strict=True))
    saved = any(path is not None and is_saved(path) for path in paths)
    if settings.subset and not hub:
        rule = "Only data sets of the hub have subsets, and this is none."
        raise ConfigError("data.subset", f"'{settings.subset}' for {', '.join(names)}", rule, "Leave it out.")
    if settings.split != "train" and not hub and not saved:
        rule = "Only data sets have splits, and this is none."
        raise ConfigError("data.split", f"'{settings.split}' for {', '.join(names)}", rule, "Leave it out.")
