"""Prepared rows on disk, under a key of everything they depend on.

The key is a SHA-256 over the rows' content, the tokenizer (vocabulary, added tokens, chat template), the format and the
settings that change tokens or labels, the day where the template prints it, and the versions of what renders and
tokenizes. Change one and the key is another; nothing is ever looked up by name or by time.

Entries are put in place whole. Several processes may make the same one at once: the first stays, the others use it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib.metadata
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hasten import __version__
from hasten.data.documents import Documents
from hasten.data.formats import Format
from hasten.data.report import DataReport
from hasten.data.rows import text_digest
from hasten.data.settings import DataSettings
from hasten.files import new_folder, storing

_REPORT = "report.json"
_UNFINISHED = ".unfinished-"
_ABANDONED_S = 86_400.0
_FORM = 2
"""Raised when the files or the rules by which rows become tokens change."""
_PACKAGES = ("tokenizers", "transformers", "jinja2")
_SETTINGS = (
    "columns",
    "max_length",
    "too_long",
    "loss_on",
    "control_tokens",
    "merge_turns",
    "fold_system",
    "inserted_text",
)


def key_of(fingerprint: str, kind: Format, tokenizer: Any, settings: DataSettings, day: str) -> str:
    """What prepared rows are known by.

    Args:
        fingerprint: of the rows.
        kind: the format they are read in.
        tokenizer: a fast transformers tokenizer.
        settings: of the data path; only those that change tokens or labels count.
        day: the day that the template prints; empty where it prints none.
    """
    values = dataclasses.asdict(settings)
    parts = {
        "form": _FORM,
        "hasten": __version__,
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "rows": fingerprint,
        "format": [kind.name, kind.columns, kind.is_chat],
        "tokenizer": text_digest(tokenizer.backend_tokenizer.to_str()),
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "template": text_digest(json.dumps(tokenizer.chat_template)),
        "settings": {name: values[name] for name in _SETTINGS},
        "day": day,
    }
    return text_digest(json.dumps(parts, sort_keys=True))


def load(cache: Path, key: str) -> tuple[Documents, DataReport] | None:
    """What is stored under a key, memory-mapped; None where there is nothing that can be read, or nothing whole."""
    folder = cache / key
    try:
        report = DataReport.from_dict(json.loads((folder / _REPORT).read_text(encoding="utf-8")))
        documents = Documents.load(folder)
    except (OSError, ValueError, KeyError, TypeError):  # half a file, or one of another version: made anew
        return None
    return (documents, report) if len(documents) == report.documents else None


def store(cache: Path, key: str, make: Callable[[Path], tuple[Documents, DataReport]]) -> tuple[Documents, DataReport]:
    """Make prepared rows in the cache; nothing is left there when that fails.

    Args:
        cache: the folder of prepared rows.
        key: from `key_of`.
        make: writes the arrays into the folder it is given.

    Raises:
        StorageError: the folder cannot be written or the disk is full.
    """
    path = cache / key
    with storing(path):
        cache.mkdir(parents=True, exist_ok=True)
        _sweep(cache)
        with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=cache) as private:
            made = Path(private) / key
            with new_folder(made) as folder:
                report = make(folder)[1]
                (folder / _REPORT).write_text(json.dumps(report.as_dict()), encoding="utf-8")
            with contextlib.suppress(OSError):  # another process was faster, or a damaged entry is in the way
                made.rename(path)
            if made.exists() and load(cache, key) is None:  # damaged; one that others have just made is never removed
                shutil.rmtree(path, ignore_errors=True)
                with contextlib.suppress(OSError):
                    made.rename(path)
        found = load(cache, key)
        if found is None:
            raise OSError(errno.EIO, "the rows cannot be read back")
    return found


def _sweep(cache: Path) -> None:
    """Remove what killed processes left behind; one that is at work writes all the time."""
    for folder in cache.glob(f"{_UNFINISHED}*"):
        with contextlib.suppress(OSError):
            written = max((path.stat().st_mtime for path in folder.rglob("*")), default=folder.stat().st_mtime)
            if time.time() - written > _ABANDONED_S:
                shutil.rmtree(folder, ignore_errors=True)
