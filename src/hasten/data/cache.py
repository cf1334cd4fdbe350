"""Prepared rows on disk, under a key of everything they depend on.

The key is a SHA-256 over the rows' content, the tokenizer (vocabulary, added tokens, chat template), the settings that
change tokens or labels, the day where the template prints it, and the versions of hasten and tokenizers. Change one
and the key is another; nothing is ever looked up by name or by time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hasten import __version__
from hasten.data.documents import Documents
from hasten.data.report import DataReport
from hasten.data.settings import DataSettings
from hasten.files import new_folder

_REPORT = "report.json"
_FORM = 1
"""Raised when the files or the rules by which rows become tokens change."""
_SETTINGS = (
    "format",
    "columns",
    "max_length",
    "too_long",
    "loss_on",
    "control_tokens",
    "merge_turns",
    "fold_system",
    "inserted_text",
)


def key_of(fingerprint: str, tokenizer: Any, settings: DataSettings, day: str) -> str:
    """What prepared rows are known by.

    Args:
        fingerprint: of the rows.
        tokenizer: a fast transformers tokenizer.
        settings: of the data path; only those that change tokens or labels count.
        day: the day that the template prints; empty where it prints none.
    """
    values = dataclasses.asdict(settings)
    parts = {
        "form": _FORM,
        "hasten": __version__,
        "tokenizers": importlib.metadata.version("tokenizers"),
        "rows": fingerprint,
        "tokenizer": _hash(tokenizer.backend_tokenizer.to_str()),
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "template": _hash(json.dumps(tokenizer.chat_template)),
        "settings": {name: values[name] for name in _SETTINGS},
        "day": day,
    }
    return _hash(json.dumps(parts, sort_keys=True))


def load(cache: Path, key: str) -> tuple[Documents, DataReport] | None:
    """What is stored under a key, memory-mapped; None where there is nothing, or nothing whole."""
    folder = cache / key
    try:
        report = DataReport.from_dict(json.loads((folder / _REPORT).read_text(encoding="utf-8")))
        return Documents.load(folder), report
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError, EOFError):  # half a file, or one of another version: made anew
        return None


def store(cache: Path, key: str, make: Callable[[Path], tuple[Documents, DataReport]]) -> tuple[Documents, DataReport]:
    """Make prepared rows in the cache; nothing is left there when that fails.

    Args:
        cache: the folder of prepared rows.
        key: from `key_of`.
        make: writes the arrays into the folder it is given.

    Raises:
        StorageError: the folder cannot be written or the disk is full.
    """
    with new_folder(cache / key) as folder:
        _, report = make(folder)
        (folder / _REPORT).write_text(json.dumps(report.as_dict()), encoding="utf-8")
    return Documents.load(cache / key), report


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
