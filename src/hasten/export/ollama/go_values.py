"""Values of Go templates: what they are called, whether they count as true, and how they are written.

They are Python's: strings, numbers, booleans, None, lists and dictionaries; a `Struct` is a dictionary whose fields are
fixed, as those of Go's structs are, and a `Shown` one is written as JSON.
"""

from __future__ import annotations

import json
from typing import Any

from hasten.export.ollama.go_lexer import template_error

_HTML = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


class Struct(dict[str, Any]):
    """A value whose fields are fixed: any other field is an error, where a dictionary has none.

    Args:
        fields: their values by name.
        written: what it is written as, in JSON; None for one that is never written.
    """

    def __init__(self, fields: dict[str, Any], written: Any = None) -> None:
        super().__init__(fields)
        self.written = written


class Shown(dict[str, Any]):
    """A dictionary that is written as JSON."""


class ShownList(list[Any]):
    """A list that is written as JSON."""


def truth(value: Any) -> bool:
    """Whether a value counts as true: not false, 0, nil, or empty; structs always do."""
    return True if isinstance(value, Struct) else bool(value)


def shown(value: Any) -> str:
    """A value as text, as Go's fmt.Print writes it (an action of nil alone writes `<no value>`, which is not here)."""
    match value:
        case str():
            return value
        case None:
            return "<nil>"
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case Shown() | ShownList():
            return go_json(value)
        case Struct() if value.written is not None:
            return go_json(value)
        case list():
            return f"[{' '.join(shown(item) for item in value)}]"
        case dict() if not isinstance(value, Struct):
            return f"map[{' '.join(f'{key}:{shown(value[key])}' for key in sorted(value))}]"
        case _:
            raise template_error(f"a {type(value).__name__} is written as text", "Only texts and whole numbers are.")


def go_json(value: Any) -> str:
    """A value as Go's json.Marshal writes it: no blanks, and characters escaped that mean something in HTML."""
    text = json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"))
    return "".join(_HTML.get(character, character) for character in text)


def _plain(value: Any) -> Any:
    if isinstance(value, Struct):
        if value.written is None:
            raise template_error("a struct as JSON", "hasten knows tools and the arguments of calls as JSON.")
        return value.written
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict) and not isinstance(value, Shown):  # Go sorts the keys of maps
        return {key: _plain(value[key]) for key in sorted(value)}
    return value


def kind_of(value: Any) -> str:
    """Go's kind of a basic value; comparisons are between values of one kind."""
    match value:
        case bool():
            return "bool"
        case int():
            return "int"
        case float():
            return "float"
        case str():
            return "string"
        case None:
            return "nil"
        case _:
            return type(value).__name__
