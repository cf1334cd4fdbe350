"""A .json file: a list of objects, an object with that list in its one list-valued field, or in truth JSON lines.

A list is parsed as a whole and stays in memory; a file that does not fit is better written as JSON lines.
"""

from __future__ import annotations

from typing import Any

from hasten.data.readers.files import DataFile
from hasten.data.readers.json_lines import JsonLines, is_blank
from hasten.data.readers.json_text import as_row, kind_of, parsed_row, parsed_value
from hasten.data.readers.text_lines import decoded, empty, lines, whole_text
from hasten.data.rows import BrokenRow, ListRows, Row, RowSource
from hasten.errors import DataError

_OF_ONE_ROW = ("messages", "conversations")
"""Lists that belong to a single row: its turns are no rows."""


class JsonList(ListRows):
    """The rows of a .json file, in memory."""

    def __init__(self, rows: list[Row], file: DataFile, notes: list[str]) -> None:
        super().__init__(rows, file.name, notes)
        self._file = file

    def _digest(self) -> str:
        return self._file.digest_as("JSON list")


def read_json(file: DataFile) -> RowSource:
    """The rows of a .json file.

    Raises:
        DataError: it cannot be read, is not JSON, or holds something else than rows; places are named.
    """
    if _has_lines(file):
        return JsonLines(file, [f"{file.name} holds JSON lines"])
    text = whole_text(file)
    if not text.strip():
        raise empty(file.name)
    value = parsed_value(file.name, text)
    del text
    value, notes = _list_of(file.name, value)
    if not value:
        raise empty(file.name, "an empty list")
    return JsonList([as_row(file.name, f"row {number}", row) for number, row in enumerate(value, 1)], file, notes)


def _has_lines(file: DataFile) -> bool:
    """Whether the first line is an object by itself and more follows."""
    filled = ((number, offset, line) for number, offset, line in lines(file) if not is_blank(line))
    first, second = next(filled, None), next(filled, None)
    if first is None or second is None or not first[2].startswith(b"{"):
        return False
    number, offset, line = first
    try:
        parsed_row(file.name, decoded(file.name, line, offset, number), lambda: number)
    except DataError:
        return False
    return True


def _list_of(name: str, value: Any) -> tuple[list[Any], list[str]]:
    if isinstance(value, list):
        return value, []
    if isinstance(value, BrokenRow):
        raise DataError(name, value.reason, "No object may have a key twice.", "Correct it.")
    if isinstance(value, dict):
        found = [field for field, items in value.items() if isinstance(items, list)]
        if len(found) == 1 and found[0] not in _OF_ONE_ROW and all(isinstance(row, dict) for row in value[found[0]]):
            return value[found[0]], [f"the rows are the list '{found[0]}' of {name}"]
    rule = "A .json file is one list of objects."
    raise DataError(name, kind_of(value), rule, "Wrap it in [ ], or name it .jsonl.")
