"""Reading rows: files of JSON or JSON lines, in UTF-8, with errors that name file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hasten.data.stdlib_docs import question_rows
from hasten.errors import DataError, nearest

Row = dict[str, Any]
PYTHON_DOCS = "python-docs"
_SUFFIXES = (".json", ".jsonl")


def read_rows(source: str) -> list[Row]:
    """All rows of a source.

    Args:
        source: a path to a ``.json`` file (a list of objects) or a ``.jsonl`` file (an object a line), or
            ``"python-docs"``.

    Raises:
        DataError: the file is missing, unreadable, empty, of another kind, or not valid; the line is named.
    """
    if source == PYTHON_DOCS:
        return question_rows()
    path = Path(source).expanduser()
    if path.is_dir():
        raise DataError(source, "a folder", "Data is a .json or .jsonl file, or 'python-docs'.", _folder_remedy(path))
    if not path.is_file():
        rule = "Data is a .json or .jsonl file, or 'python-docs'."
        raise DataError(source, "no such file", rule, _missing_remedy(path, source))
    if path.suffix.lower() not in _SUFFIXES:
        raise DataError(
            source, f"a '{path.suffix}' file", "Rows are read from .json and .jsonl files.", "Convert it to JSON lines."
        )
    text = _read_text(source, path)
    if not text.strip():
        raise DataError(
            source, "an empty file", "It must hold at least one row.", "Write rows into it, or name another."
        )
    return _json_list(source, text) if path.suffix.lower() == ".json" else _json_lines(source, text)


def _read_text(source: str, path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as cause:
        line = cause.object.count(b"\n", 0, cause.start) + 1
        raise DataError(
            source,
            f"line {line}: byte 0x{cause.object[cause.start]:02x} at offset {cause.start} is not UTF-8",
            "Data files are UTF-8.",
            "Convert the file to UTF-8.",
        ) from cause
    except OSError as cause:
        raise DataError(
            source, f"it cannot be read ({cause.strerror})", "Data is read from this file.", "Check its permissions."
        ) from cause


def _json_lines(source: str, text: str) -> list[Row]:
    rows: list[Row] = []
    # Not splitlines(): U+2028 and its kin are legal inside JSON strings.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            rows.append(_object(source, f"line {number}", _parse(source, line, number)))
    return rows


def _json_list(source: str, text: str) -> list[Row]:
    value = _parse(source, text, 1)
    if not isinstance(value, list):
        rule = "A .json file is one list of objects."
        raise DataError(source, f"a JSON {type(value).__name__}", rule, "Wrap it in [ ], or name it .jsonl.")
    if not value:
        raise DataError(
            source, "an empty list", "It must hold at least one row.", "Write rows into it, or name another."
        )
    return [_object(source, f"row {number}", row) for number, row in enumerate(value, 1)]


def _parse(source: str, text: str, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as cause:
        remedy = "Correct that line."
        if source.lower().endswith(".json") and cause.msg == "Extra data":
            remedy = "If it has one object a line, name it .jsonl."
        raise _not_json(source, f"line {line + cause.lineno - 1}, column {cause.colno}", cause.msg, remedy) from cause
    except (ValueError, RecursionError) as cause:  # a number of thousands of digits, thousands of brackets
        raise _not_json(source, f"line {line}", str(cause), "Correct that line.") from cause


def _not_json(source: str, where: str, reason: str, remedy: str) -> DataError:
    rule = "A .jsonl file has one object a line, a .json file one list of objects."
    return DataError(source, f"{where} is not JSON ({reason})", rule, remedy)


def _object(source: str, where: str, value: Any) -> Row:
    if not isinstance(value, dict):
        kind = "null" if value is None else f"a {type(value).__name__}"
        raise DataError(source, f"{where} is {kind}", "Every row is a JSON object.", "Correct it.")
    return value


def _folder_remedy(path: Path) -> str:
    files = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in _SUFFIXES)
    return f"Name a file in it, such as '{files[0]}'." if files else "Name a file."


def _missing_remedy(path: Path, source: str) -> str:
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    if match := nearest(path.name, names):
        return f"Did you mean '{path.parent / match}'?"
    if nearest(source, [PYTHON_DOCS]):
        return f"Did you mean '{PYTHON_DOCS}'?"
    return "Check the spelling and the working folder."
