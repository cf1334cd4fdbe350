"""JSON that becomes rows: objects only, and no key twice.

A key that comes twice in one object is refused by name, because a parser keeps either without a word. In a line it
breaks that row; in a list, which is parsed as one, the object is marked and its row is found afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from hasten.data.rows import BrokenRow, Row
from hasten.errors import DataError

_KINDS = {type(None): "null", bool: "a truth value", int: "a number", float: "a number", str: "text", list: "a list"}


class _RepeatedKey(Exception):
    """An object has a key twice."""


def parsed_row(name: str, text: str, line: Callable[[], int]) -> Row:
    """The object of one line.

    Args:
        name: the file, for messages.
        text: the line.
        line: says its number; asked for when something is wrong.

    Returns:
        The object, or a `BrokenRow` when a key comes twice.

    Raises:
        DataError: no JSON, or JSON but no object; line and column are named.
    """
    try:
        value = _LINE.decode(text)
    except _RepeatedKey as cause:
        return BrokenRow(str(cause))
    except (ValueError, RecursionError) as cause:
        remedy = "If the file is one list of objects, name it .json." if text[:1] == "[" else "Correct that line."
        raise not_json(name, cause, line(), remedy) from cause
    return as_row(name, f"line {line()}", value) if not isinstance(value, dict) else value


def parsed_value(name: str, text: str) -> Any:
    """The value of a whole file; a row that has a key twice, at any depth, is a `BrokenRow`.

    Raises:
        DataError: no JSON; line and column are named.
    """
    repeated = []

    def marked(pairs: list[tuple[str, Any]]) -> Row:
        made = dict(pairs)
        if len(made) == len(pairs):
            return made
        repeated.append(broken := BrokenRow(_repeated(pairs)))
        return broken

    try:
        value = json.loads(text, object_pairs_hook=marked)
    except (ValueError, RecursionError) as cause:
        extra = isinstance(cause, json.JSONDecodeError) and cause.msg == "Extra data"
        remedy = "If it has one object a line, name it .jsonl." if extra else "Correct that line."
        raise not_json(name, cause, 1, remedy) from cause
    return _with_broken_rows(value) if repeated else value


def as_row(name: str, where: str, value: Any) -> Row:
    """A value that must be an object.

    Raises:
        DataError: it is none; `where` and its kind are named.
    """
    if not isinstance(value, dict):
        raise DataError(name, f"{where} is {_KINDS[type(value)]}", "Every row is a JSON object.", "Correct it.")
    return value


def not_json(name: str, cause: Exception, line: int, remedy: str) -> DataError:
    """The error about a text that the parser refuses; it begins at `line` of the file."""
    where, reason = f"line {line}", str(cause)  # a number of thousands of digits, thousands of brackets
    if isinstance(cause, json.JSONDecodeError):
        where, reason = f"line {line + cause.lineno - 1}, column {cause.colno}", cause.msg
    rule = "A .jsonl file has one object a line, a .json file one list of objects."
    return DataError(name, f"{where} is not JSON ({reason})", rule, remedy)


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    return _KINDS.get(type(value), "one JSON object")


def _unique(pairs: list[tuple[str, Any]]) -> Row:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise _RepeatedKey(_repeated(pairs))
    return made


def _repeated(pairs: list[tuple[str, Any]]) -> str:
    names = [name for name, _ in pairs]
    return f"duplicate key '{next(name for name in names if names.count(name) > 1)}'"


def _with_broken_rows(value: Any) -> Any:
    if isinstance(value, list):
        return [item if (found := _broken_inside(item)) is None else found for item in value]
    if isinstance(value, dict) and not isinstance(value, BrokenRow):
        return {name: _with_broken_rows(item) for name, item in value.items()}
    return value


def _broken_inside(value: Any) -> BrokenRow | None:
    if isinstance(value, BrokenRow):
        return value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((found for item in inner if (found := _broken_inside(item)) is not None), None)


# Made once: a decoder takes longer to make than a short line to read.
_LINE = json.JSONDecoder(object_pairs_hook=_unique)
