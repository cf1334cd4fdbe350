"""JSON in prompts: found, and compared by what it says.

Chat templates write tools, arguments and results as Python's json does, Ollama as Go's does: without blanks, with `<`,
`>` and `&` escaped, and with the keys of its own types in their order. So two prompts with tools are compared but for
the spelling of these values; every other character has to be equal.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

_DECODER = json.JSONDecoder()


def spans(text: str, values: Sequence[Any], start: int = 0) -> Iterator[tuple[int, int, int]]:
    """Where some values stand in a text as JSON, the outermost where one holds another.

    Args:
        text: to look through.
        values: objects or texts.
        start: where to begin.

    Returns:
        Start, stop and the place of the value in `values`, from left to right.
    """
    wanted = [_sorted(value) for value in values]
    opening = {'"' if isinstance(value, str) else "{" for value in values}
    place = start
    while place < len(text):
        if text[place] in opening:
            try:
                found, stop = _DECODER.raw_decode(text, place)
            except (ValueError, RecursionError):  # a brace or a quote of the text's own
                place += 1
                continue
            if (spelled := _sorted(found)) in wanted:
                yield place, stop, wanted.index(spelled)
                place = stop
                continue
        place += 1


def respelled(text: str, values: Sequence[Any]) -> str:
    """A text with these values in one spelling, wherever and however they stand in it as JSON."""
    made, begin = "", 0
    for start, stop, which in spans(text, values):
        made += text[begin:start] + _sorted(values[which])
        begin = stop
    return made + text[begin:]


def _sorted(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
