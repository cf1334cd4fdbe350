"""Contents exchanged for characters that no text has, to see what of a rendered text is theirs.

A stock template does not say which characters it took from a message, and nothing may be searched for inside content.
So a message's words are exchanged for one private character, its mark, and the renderings are compared: what changed
is the message's, what did not is the template's own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from hasten.data.conversation import Message

Render = Callable[[Sequence[Message], Any, bool], str]
"""``render(messages, tools, ask)`` is the template's text; raises `RowProblem`."""

MARK = 0x100000
"""First of the private characters that stand for words."""
MOST_MARKS = 0xFFF0
WORDS = ("reasoning_content", "content")
"""Fields of a message that hold its words, in the order in which templates write them."""


def mark(number: int) -> str:
    """The private character with a number."""
    return chr(MARK + number % MOST_MARKS)


def exchanged(messages: Sequence[Message], index: int, *, words: bool = True, calls: bool = True) -> list[Message]:
    """The messages with what message `index` says exchanged for its mark.

    Names of calls stay: templates repeat them in the headers of results. So does the absence of content beside calls.

    Args:
        messages: a conversation, not changed.
        index: one of its messages.
        words: exchange its content and reasoning.
        calls: exchange the arguments of its calls.
    """
    message, sign = dict(messages[index]), mark(index)
    made = message.get("tool_calls") or []
    if words:
        message |= {key: sign for key in WORDS if key in message and (message[key] or not made)}
    if calls and made:
        message["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": _other(call["function"].get("arguments"), sign)}}
            for call in made
        ]
    return [*messages[:index], message, *messages[index + 1 :]]


def _other(arguments: Any, sign: str) -> Any:
    """Arguments of the same kind and with the same keys, whose values are a mark."""
    if isinstance(arguments, str):
        return json.dumps({sign: sign}, ensure_ascii=False)
    return dict.fromkeys(arguments or [sign], sign)


def alike(first: str, second: str) -> int:
    """How many characters two texts share at the beginning; halving, since texts are long and rows many."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first.startswith(second[low:middle], low):
            low = middle
        else:
            high = middle - 1
    return low


def difference(text: str, other: str) -> tuple[int, int]:
    """How many characters are alike at the beginning of two texts, and at the end of the rest."""
    start = alike(text, other)
    return start, alike(text[start:][::-1], other[start:][::-1])


def behind(
    render: Render,
    messages: Sequence[Message],
    tools: Any,
    *,
    ask: bool = False,
    then: str | None = None,
    words: bool = True,
) -> str | None:
    """What a template writes behind what the last message says; None where it leaves that message out.

    Args:
        render: the template.
        messages: a conversation.
        tools: its tool schemas.
        ask: with the generation prompt.
        then: as if a turn of this role followed; up to its content.
        words: False: behind its calls, wherever its words stand.

    Raises:
        RowProblem: the template refuses these messages.
    """
    index = len(messages) - 1
    sign = mark(index + 1)
    rest = [{"role": then, "content": sign}] if then else []
    other = render([*exchanged(messages, index, words=words), *rest], tools, ask)
    if "tool_calls" in messages[index]:
        text = render([*messages, *rest], tools, ask)
        tail = text[len(text) - difference(text, other)[1] :] if text != other else None
    else:
        tail = other.rpartition(mark(index))[2] if mark(index) in other else None
    if then and tail is not None:
        tail = tail.partition(sign)[0] if sign in tail else None
    return tail
