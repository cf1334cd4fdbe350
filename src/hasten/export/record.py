"""What stands beside the targets of a folder: which of them exports made, of what model, with which files.

An export replaces only what is named there, so a record that was changed or cut off is refused, never guessed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hasten.errors import StorageError

RECORD = "export.json"


def read_record(output: Path) -> dict[str, Any]:
    """The record of a folder; empty where there is none. ``targets`` is always there.

    Args:
        output: the folder of all targets.

    Raises:
        StorageError: it cannot be read, or is not as exports write it.
    """
    path = output / RECORD
    if not path.exists():
        return {"targets": {}}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as cause:  # not JSON, or not UTF-8
        raise _unusable(path, "not valid JSON") from cause
    except OSError as cause:
        raise _unusable(path, f"it cannot be read ({cause.strerror or cause})") from cause
    if not isinstance(found, dict) or not isinstance(found.setdefault("targets", {}), dict):
        raise _unusable(path, "not an export's record")
    for name, target in found["targets"].items():
        if not _is_target(target):
            raise _unusable(path, f"what it says of '{name:.60}' is no target's")
    return found


def _is_target(target: Any) -> bool:
    if not isinstance(target, dict):
        return False
    contents, files = target.get("contents", []), target.get("files", {})
    return (
        isinstance(contents, list)
        and all(isinstance(name, str) for name in contents)
        and isinstance(files, dict)
        and all(isinstance(each, dict) and isinstance(each.get("path"), str) for each in files.values())
        and all(isinstance(each.get("bytes"), int) for each in files.values())
    )


def _unusable(path: Path, value: str) -> StorageError:
    return StorageError(
        str(path),
        value,
        "It says what an export may replace.",
        "Choose another folder; or move this file and the targets beside it away.",
    )
