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
        DataError: the file is missing, empty, of another kind, or not valid; the line is named.
    """
    if source == PYTHON_DOCS:
        return question_rows()
    path = Path(source).expanduser()
    if not path.is_file():
        raise DataError(source, "no such file", "Data is a .json or .jsonl file, or 'python-docs'.", _missing_remedy(path))
    if path.suffix.lower() not in _SUFFIXES:
        raise DataError(
            source, f"a '{path.suffix}' file", "Rows are read from .json and .jsonl files.", "Convert it to JSON lines."
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as cause:
        line = cause.object.count(b"\n", 0, cause.start) + 1
        raise DataError(
            source, f"line {line}, byte {cause.start} is not UTF-8", "Data files are UTF-8.", "Convert the file to UTF-8."
        ) from cause
    if not text.strip():
        raise DataError(source, "an empty file", "It must hold at least one row.", "Write rows into it, or name another.")
    return _json_list(source, text) if path.suffix.lower() == ".json" else _json_lines(source, text)


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
        raise DataError(source, "an empty list", "It must hold at least one row.", "Write rows into it, or name another.")
    return [_object(source, f"row {number}", row) for number, row in enumerate(value, 1)]


def _parse(source: str, text: str, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as cause:
        where = line + cause.lineno - 1
        raise DataError(
            source,
            f"line {where}, column {cause.colno} is not JSON ({cause.msg})",
            "A .jsonl file has one object a line, a .json file one list of objects.",
            "Correct that line.",
        ) from cause


def _object(source: str, where: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise DataError(source, f"{where} is a {type(value).__name__}", "Every row is a JSON object.", "Correct it.")
    return value


def _missing_remedy(path: Path) -> str:
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    match = nearest(path.name, names)
    return f"Did you mean '{path.parent / match}'?" if match else "Check the spelling and the working folder."
