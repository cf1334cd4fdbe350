"""The functions of Go templates. Strings are measured and cut in bytes of UTF-8, as Go does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from hasten.export.ollama.go_lexer import template_error
from hasten.export.ollama.go_values import Struct, go_json, kind_of, shown, truth

_VERB = re.compile(r"%(?:%|(?P<flags>[-+ 0]*)(?P<width>\d*|\*)(?P<digits>\.\d+)?(?P<verb>[a-zA-Z]))")


def call(name: str, values: list[Any]) -> Any:
    """What a function makes of values.

    Raises:
        ModelError: too few or too many values, or values of other kinds.
    """
    least, most = _COUNTS.get(name, (1, None))
    if len(values) < least or (most is not None and len(values) > most):
        raise template_error(f"'{name}' with {len(values)} arguments")
    return _FUNCTIONS[name](*values)


def deciding(name: str, values: Iterable[Any]) -> Any:
    """The first argument that decides an `and` or `or`; those behind it are not evaluated."""
    value, some = None, False
    for value in values:
        some = True
        if truth(value) == (name == "or"):
            break
    if not some:
        raise template_error(f"'{name}' without arguments")
    return value


def _equal(first: Any, *others: Any) -> bool:
    return any(_same(first, other) for other in others)


def _same(first: Any, second: Any) -> bool:
    kinds = {kind_of(first), kind_of(second)}
    if not kinds <= {"bool", "int", "float", "string", "nil"} or (len(kinds) > 1 and "nil" not in kinds):
        raise template_error(f"{kind_of(first)} and {kind_of(second)} are compared", "Only values of one kind are.")
    return first == second


def _less(first: Any, second: Any) -> bool:
    kinds = {kind_of(first), kind_of(second)}
    if len(kinds) > 1 or not kinds <= {"int", "float", "string"}:
        raise template_error(f"{kind_of(first)} and {kind_of(second)} are ordered", "Only numbers and strings are.")
    return first.encode() < second.encode() if isinstance(first, str) else first < second


def _length(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, list) or (isinstance(value, dict) and not isinstance(value, Struct)):
        return len(value)
    raise template_error(f"the length of a {kind_of(value)}")


def _index(value: Any, *places: Any) -> Any:
    for place in places:
        if isinstance(value, dict) and not isinstance(value, Struct):
            if not isinstance(place, str):
                raise template_error(f"a {kind_of(place)} as the key of a map")
            value = value.get(place)
            continue
        if not isinstance(value, str | list):
            raise template_error(f"an index into a {kind_of(value)}")
        held: bytes | list[Any] = value.encode() if isinstance(value, str) else value
        value = held[_place(place, len(held) - 1)]
    return value


def _slice(value: Any, *places: Any) -> Any:
    if not isinstance(value, str | list):
        raise template_error(f"a slice of a {kind_of(value)}")
    held: bytes | list[Any] = value.encode() if isinstance(value, str) else value
    start = _place(places[0], len(held)) if places else 0
    stop = _place(places[1], len(held)) if len(places) > 1 else len(held)
    if start > stop:
        raise template_error(f"a slice from {start} to {stop}")
    cut = held[start:stop]
    if isinstance(cut, list):
        return cut
    try:
        return cut.decode()
    except UnicodeDecodeError as cause:
        raise template_error("a slice through the bytes of a character") from cause


def _place(place: Any, most: int) -> int:
    if kind_of(place) != "int" or not 0 <= place <= most:
        raise template_error(f"index {place}", f"Here it is a whole number from 0 to {most}.")
    return place


def _print(*values: Any) -> str:
    """Go's fmt.Sprint: a blank between two values that are both no strings."""
    text = ""
    for before, value in zip((None, *values), values, strict=False):
        blank = text and not isinstance(before, str) and not isinstance(value, str)
        text += f"{' ' if blank else ''}{shown(value)}"
    return text


def _formatted(text: Any, *values: Any) -> str:
    if not isinstance(text, str):
        raise template_error("a format that is no string")
    remaining = list(values)

    def one(match: re.Match[str]) -> str:
        verb = match["verb"]
        if verb is None:
            return "%"
        if not remaining:
            raise template_error(f"'{match[0]}' without a value")
        width = match["width"]
        if width == "*":
            width = str(_place(remaining.pop(0), 1 << 20))
            if not remaining:
                raise template_error(f"'{match[0]}' without a value")
        value = remaining.pop(0)
        fits = {"s": str, "q": str, "d": int, "x": int, "t": bool, "f": float}.get(verb, object)
        if verb not in "sqdxtfv" or not isinstance(value, fits) or (verb in "dx" and isinstance(value, bool)):
            raise template_error(
                f"'{match[0]}' of a {kind_of(value)}", "hasten knows %s %q %d %x %t %f %v of their kinds."
            )
        if verb in "dxf":
            return f"%{match['flags']}{width}{match['digits'] or ''}{verb}" % value
        if match["flags"].strip("-") or match["digits"]:
            raise template_error(f"'{match[0]}'", "Of texts, hasten knows a width and '-'.")
        if verb == "q" and not value.translate(dict.fromkeys(map(ord, "\n\r\t"), " ")).isprintable():
            raise template_error(f"'{match[0]}' of characters that are not printable")
        made = json.dumps(value, ensure_ascii=False) if verb == "q" else shown(value)
        return made.ljust(int(width or 0)) if "-" in match["flags"] else made.rjust(int(width or 0))

    made = _VERB.sub(one, text)
    if remaining or "%" in _VERB.sub("", text):
        raise template_error(f"format '{text}' with {len(values)} values")
    return made


_COUNTS: dict[str, tuple[int, int | None]] = {
    "not": (1, 1),
    "len": (1, 1),
    "slice": (1, 3),
    "print": (0, None),
    "println": (0, None),
    "json": (1, 1),
    "eq": (2, None),
    **dict.fromkeys(("ne", "lt", "le", "gt", "ge"), (2, 2)),
}
"""How many arguments a function takes; otherwise at least one."""
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "not": lambda value: not truth(value),
    "len": _length,
    "index": _index,
    "slice": _slice,
    "print": _print,
    "println": lambda *values: " ".join(shown(value) for value in values) + "\n",
    "printf": _formatted,
    "eq": _equal,
    "ne": lambda first, second: not _same(first, second),
    "lt": _less,
    "le": lambda first, second: _less(first, second) or _same(first, second),
    "gt": lambda first, second: not _less(first, second) and not _same(first, second),
    "ge": lambda first, second: not _less(first, second),
    "json": go_json,
}
