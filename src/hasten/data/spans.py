"""Where each turn stands in the text that a chat template renders.

Stock templates have no generation markers, and nothing may be searched for inside content, so the places are found by
rendering: a turn's content is exchanged for one character that no text has, and what changes in the rendered text is
where the content stands. What lies between two contents is the template's own.

    <|im_start|>user\\n U <|im_end|>\\n<|im_start|>assistant\\n A <|im_end|>\\n
                       |  what comes before A               |   | what comes after A
    a turn starts      where the header ends that `add_generation_prompt` writes
    and stops          behind its last control token that is written whether or not another answer is asked for
                       (Phi-3 writes the end of text only when none is asked for: that is not the turn's)

All of this depends on the roles and not on the words, so it is found once for each sequence of roles and kept; a row is
then rendered once and compared with the pieces. A row that does not fit (tool calls, a template that looks into the
content, thinking that is dropped from earlier turns) has its own turns exchanged one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

from hasten.data.conversation import Message, RowProblem

Span = tuple[int, int]
MARK = 0x100000
"""First of the private characters that stand for contents; message i has ``chr(MARK + i)``."""
_MOST_MARKS = 0xFFF0


@dataclass(frozen=True)
class Turn:
    """One message in the rendered text: characters `start` to `stop`, its end of turn included."""

    message: int
    start: int
    stop: int


@dataclass(frozen=True)
class Layout:
    """A rendered conversation.

    Attributes:
        text: what the template renders.
        turns: in the order of the messages; a message that the template leaves out has none.
        unseen: what a generation prompt has and no row does, such as an opening thinking tag; empty otherwise.
    """

    text: str
    turns: tuple[Turn, ...]
    unseen: str = ""


@dataclass(frozen=True)
class _Border:
    """A turn's border in the template's text around its content."""

    header: int
    """Characters of the text before the content that belong to the header."""
    tail: int
    """Characters of the text after the content that belong to the turn."""
    unseen: str


@dataclass(frozen=True)
class _Skeleton:
    """What a template writes around contents: ``pieces[0] content pieces[1] content ... pieces[-1]``."""

    pieces: tuple[str, ...]
    order: tuple[int, ...]
    borders: dict[int, _Border]


class TurnFinder:
    """Finds turns for one chat template.

    Args:
        render: ``render(messages, tools, ask)`` is the template's text; raises `RowProblem`.
        controls: the model's control tokens as text.
    """

    def __init__(self, render: Callable[..., str], controls: Sequence[str]) -> None:
        self._render = render
        self._controls = tuple(controls)
        self._skeletons: dict[tuple[str, ...], _Skeleton | None] = {}

    def find(self, text: str, messages: Sequence[Message], tools: Any = None) -> Layout:
        """The turns of a conversation whose rendering is known.

        Args:
            text: ``render(messages, tools, ask=False)``.
            messages: its messages.
            tools: its tool schemas, if any.

        Raises:
            RowProblem: the template writes these messages in a way in which turns cannot be told apart.
        """
        if tools is None and all(message.keys() == {"role", "content"} for message in messages):
            skeleton = self._skeleton(tuple(message["role"] for message in messages))
            layout = _fitted(text, messages, skeleton) if skeleton else None
            if layout is not None:
                return layout
        return self._by_exchange(text, messages, tools)

    # -- by roles ------------------------------------------------------------------------------------------------------

    def _skeleton(self, roles: tuple[str, ...]) -> _Skeleton | None:
        if roles not in self._skeletons:
            self._skeletons[roles] = self._make_skeleton(roles) if len(roles) < _MOST_MARKS else None
        return self._skeletons[roles]

    def _make_skeleton(self, roles: tuple[str, ...]) -> _Skeleton | None:
        marked = [{"role": role, "content": _mark(index)} for index, role in enumerate(roles)]
        try:
            text = self._render(marked, None, False)
        except RowProblem:
            return None
        order = [ord(character) - MARK for character in text if MARK <= ord(character) < MARK + len(roles)]
        if len(set(order)) != len(order):
            return None
        pieces = _split_at(text, order)
        borders = {}
        for slot, index in enumerate(order):
            border = self._border(marked, None, index, pieces[slot], pieces[slot + 1])
            if border is None:
                return None
            borders[index] = border
        return _Skeleton(tuple(pieces), tuple(order), borders)

    # -- one by one ----------------------------------------------------------------------------------------------------

    def _by_exchange(self, text: str, messages: Sequence[Message], tools: Any) -> Layout:
        regions: dict[int, Span] = {}
        for index in range(len(messages)):
            other = self._render(_exchanged(messages, index), tools, False)
            if other != text:
                start, end = _difference(text, other)
                regions[index] = (start, len(text) - end)
        order = sorted(regions, key=lambda index: regions[index])
        turns: dict[int, Turn] = {}
        unseen, before = "", 0
        for place, index in enumerate(order):
            start, stop = regions[index]
            if start < before:
                raise RowProblem("the chat template writes turns into one another")
            after = regions[order[place + 1]][0] if place + 1 < len(order) else len(text)
            border = self._border(messages, tools, index, text[before:start], text[stop:after])
            if border is None:
                raise RowProblem("the chat template does not show where an answer begins")
            turns[index] = Turn(index, before + border.header, stop + border.tail)
            unseen = unseen or border.unseen
            before = stop
        return Layout(text, tuple(turns[index] for index in sorted(turns)), unseen)

    # -- borders -------------------------------------------------------------------------------------------------------

    def _border(self, messages: Sequence[Message], tools: Any, index: int, before: str, after: str) -> _Border | None:
        """The border of message `index`, whose content stands between `before` and `after`."""
        tail = self._end_of_turn(messages, tools, index, after)
        if messages[index]["role"] != "assistant":  # learnt only when asked for: content and end of turn
            return _Border(len(before), tail, "")
        asked = self._asked(messages, tools, index)
        header = len(commonprefix([before, asked]))
        if header or not asked:
            return _Border(header, tail, asked[header:])
        place = before.rfind(asked)
        return _Border(place + len(asked), tail, "") if place >= 0 else None

    def _asked(self, messages: Sequence[Message], tools: Any, index: int) -> str:
        """What stands between the content before and an answer that is asked for."""
        if index == 0:  # there is nothing before it to ask from: what is added behind a question
            question = [{"role": "user", "content": _mark(0)}]
            plain, asked = self._render(question, tools, False), self._render(question, tools, True)
            return asked[len(commonprefix([plain, asked])) :]
        marked = _exchanged(messages[:index], index - 1)
        plain, asked = self._render(marked, tools, False), self._render(marked, tools, True)
        if "tool_calls" in messages[index - 1] or _mark(index - 1) not in asked:
            return asked[len(commonprefix([plain, asked])) :]
        return asked.rpartition(_mark(index - 1))[2]

    def _end_of_turn(self, messages: Sequence[Message], tools: Any, index: int, after: str) -> int:
        """How many characters of `after` are the turn's own."""
        last = index == len(messages) - 1
        through = self._tail(messages[: index + 1], tools, index, False)
        try:
            body = commonprefix([through, self._tail(messages[: index + 1], tools, index, True)])
        except RowProblem:  # a template that asks only after a question
            body = through if last else commonprefix([through, after])
        # A model whose only end is that of the whole text learns that one.
        length = self._behind_control(body) or (self._behind_control(through) if last else 0) or len(body.rstrip())
        if after.startswith(through[:length]):
            return length
        shared = commonprefix([through, after])
        return self._behind_control(shared) or len(shared.rstrip())

    def _tail(self, messages: Sequence[Message], tools: Any, index: int, ask: bool) -> str:
        """What is rendered behind the content of message `index`, which is the last."""
        other = self._render(_exchanged(messages, index), tools, ask)
        if "tool_calls" not in messages[index]:
            return other.rpartition(_mark(index))[2] if _mark(index) in other else ""
        text = self._render(messages, tools, ask)
        return text[len(text) - _difference(text, other)[1] :] if text != other else ""

    def _behind_control(self, text: str) -> int:
        """Behind the last control token; 0 where there is none."""
        return max((text.rfind(token) + len(token) for token in self._controls if token in text), default=0)


def _mark(index: int) -> str:
    return chr(MARK + index % _MOST_MARKS)


def _fitted(text: str, messages: Sequence[Message], skeleton: _Skeleton) -> Layout | None:
    """The layout if the text is the skeleton with these contents, as they are or stripped."""
    if not text.startswith(skeleton.pieces[0]):
        return None
    place = len(skeleton.pieces[0])
    turns: dict[int, Turn] = {}
    unseen = ""
    for slot, index in enumerate(skeleton.order):
        content, after = messages[index]["content"], skeleton.pieces[slot + 1]
        for variant in (content, content.strip(), content.rstrip(), content.lstrip()):
            if text.startswith(variant, place) and text.startswith(after, place + len(variant)):
                break
        else:
            return None
        border = skeleton.borders[index]
        stop = place + len(variant)
        start = place - len(skeleton.pieces[slot]) + border.header
        turns[index] = Turn(index, start, stop + border.tail)
        unseen = unseen or border.unseen
        place = stop + len(after)
    if place != len(text):
        return None
    return Layout(text, tuple(turns[index] for index in sorted(turns)), unseen)


def _exchanged(messages: Sequence[Message], index: int) -> list[Message]:
    """The messages with what message `index` says exchanged for its mark."""
    mark = _mark(index)
    message = dict(messages[index])
    if calls := message.get("tool_calls"):
        message["tool_calls"] = [
            {**call, "function": {**call["function"], "name": mark, "arguments": _emptied(call)}} for call in calls
        ]
    if message["content"] or not calls:
        message["content"] = mark
    return [*messages[:index], message, *messages[index + 1 :]]


def _emptied(call: dict[str, Any]) -> Any:
    """Arguments of the same kind without anything in them."""
    return "{}" if isinstance(call["function"].get("arguments"), str) else {}


def _difference(text: str, other: str) -> tuple[int, int]:
    """How many characters are alike at the beginning, and at the end of the rest."""
    start = len(commonprefix([text, other]))
    rest, other_rest = text[start:], other[start:]
    return start, len(commonprefix([rest[::-1], other_rest[::-1]]))


def _split_at(text: str, order: Sequence[int]) -> list[str]:
    pieces = []
    for index in order:
        piece, _, text = text.partition(_mark(index))
        pieces.append(piece)
    return [*pieces, text]
