"""Where each turn stands in the text that a chat template renders.

Stock templates have no generation markers, and nothing may be searched for inside content, so the places are found by
rendering: words are exchanged for characters that no text has (`hasten.data.exchange`), and what changes in the
rendered text is where the content stands. What lies between two contents is the template's own, and part of it belongs
to a turn (`hasten.data.borders`).

    <|im_start|>user\n U <|im_end|>\n<|im_start|>assistant\n A <|im_end|>\n
                       |  what comes before A               |   | what comes after A

What a template writes around contents depends on the roles and not on the words, so it is rendered once for each
sequence of roles and kept: a row is then rendered once and compared with the pieces. A row with calls has its own
pieces, in which the calls stand as they are; each call is exchanged by itself. Where a row does not fit (a template
that looks into the content, thinking that is dropped from earlier turns) an assistant's turns are exchanged one by one,
and all turns where that does not fit either.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from hasten.data.borders import Borders
from hasten.data.conversation import Message, RowProblem
from hasten.data.exchange import MARK, MOST_MARKS, WORDS, Render, difference, exchanged, mark

Span = tuple[int, int]
_Said = tuple[Span | None, Span | None]
"""Where the words and the calls of a message stand; None where they do not."""


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
        unseen: what a generation prompt has and the last answer does not, such as an opening thinking tag.
        left_out: messages whose words the template leaves out, all of them or beside calls.
    """

    text: str
    turns: tuple[Turn, ...]
    unseen: str = ""
    left_out: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Frame:
    """What a template writes around words: ``pieces[0] words pieces[1] words ... pieces[-1]``.

    Attributes:
        pieces: one more than there are places for words.
        places: message and field of the words, in the order of the text.
    """

    pieces: tuple[str, ...]
    places: tuple[tuple[int, str], ...]


class TurnFinder:
    """Finds turns for one chat template.

    Args:
        render: ``render(messages, tools, ask)`` is the template's text; raises `RowProblem`.
        controls: the model's control tokens as text.
    """

    def __init__(self, render: Render, controls: Sequence[str]) -> None:
        self._render = render
        self._borders = Borders(render, controls)
        self._frames: dict[tuple[Any, ...], _Frame | None] = {}

    def find(self, text: str, messages: Sequence[Message], tools: Any = None, *, every: bool = True) -> Layout:
        """The turns of a conversation whose rendering is known.

        Args:
            text: ``render(messages, tools, ask=False)``.
            messages: its messages.
            tools: its tool schemas, if any.
            every: False leaves out all turns but an assistant's, which alone are learnt unless a row says otherwise.

        Raises:
            RowProblem: the template writes these messages in a way in which turns cannot be told apart.
        """
        calls = {index for index, message in enumerate(messages) if "tool_calls" in message}
        answers = {index for index, message in enumerate(messages) if message["role"] == "assistant"}
        alone = calls
        fitted = self._fit(text, messages, tools, alone)
        if fitted is None and calls | answers != calls:  # a template that looks into what an assistant says
            alone = calls | answers
            fitted = self._fit(text, messages, tools, alone)
        if fitted is None:
            alone, fitted = set(range(len(messages))), {}
        said: dict[int, _Said] = {index: (span, None) for index, span in fitted.items()}
        said |= {index: self._exchanged(text, messages, tools, index) for index in alone}
        if _overlap(said):
            said = self._apart(text, messages, tools, said)
        turns, unseen = self._turns(text, messages, tools, said, every)
        left_out = [
            index for index, message in enumerate(messages) if message["content"] and not said.get(index, (None,))[0]
        ]
        return Layout(text, turns, unseen, tuple(left_out))

    # -- where words stand ---------------------------------------------------------------------------------------------

    def _fit(self, text: str, messages: Sequence[Message], tools: Any, alone: set[int]) -> dict[int, Span] | None:
        """Where the words of all messages but some stand, if the text is their frame with these words."""
        if alone or tools is not None or any(message.keys() - {"role", *WORDS} for message in messages):
            frame = self._make_frame(messages, tools, alone)
        else:
            shape = tuple((message["role"], *(key for key in WORDS if key in message)) for message in messages)
            if shape not in self._frames:
                self._frames[shape] = self._make_frame(messages, None, alone)
            frame = self._frames[shape]
        return _fitted(text, messages, frame) if frame else None

    def _make_frame(self, messages: Sequence[Message], tools: Any, alone: set[int]) -> _Frame | None:
        marked, places = [dict(message) for message in messages], []
        for index, message in enumerate(marked):
            for key in WORDS:
                if key in message and index not in alone:
                    message[key] = mark(len(places))
                    places.append((index, key))
        if len(places) > MOST_MARKS:
            return None
        try:
            text = self._render(marked, tools, False)
        except RowProblem:
            return None
        order = [ord(character) - MARK for character in text if MARK <= ord(character) < MARK + len(places)]
        if len(set(order)) != len(order):
            return None
        return _Frame(tuple(_split_at(text, order)), tuple(places[number] for number in order))

    def _exchanged(self, text: str, messages: Sequence[Message], tools: Any, index: int) -> _Said:
        """Where the words and the calls of a message stand, each exchanged by themselves."""
        message = messages[index]
        has_calls = "tool_calls" in message
        words = calls = None
        if not has_calls or any(message.get(key) for key in WORDS):
            words = self._changed(text, exchanged(messages, index, calls=False), tools)
        if has_calls:
            calls = self._changed(text, exchanged(messages, index, words=False), tools)
            if words and not calls:
                raise RowProblem("the chat template leaves out the calls of a turn that also has content")
        return words, calls

    def _changed(self, text: str, messages: Sequence[Message], tools: Any) -> Span | None:
        other = self._render(messages, tools, False)
        if other == text:
            return None
        start, end = difference(text, other)
        return start, len(text) - end

    def _apart(self, text: str, messages: Sequence[Message], tools: Any, said: dict[int, _Said]) -> dict[int, _Said]:
        """The same where turns overlap: words of a call behind its result, questions that change what is elsewhere."""
        apart = {}
        for index, (words, calls) in said.items():
            if messages[index]["role"] != "assistant" and words:
                words = self._inserted(text, messages, tools, index) or words
            apart[index] = (None if calls else words, calls)
        return apart

    def _inserted(self, text: str, messages: Sequence[Message], tools: Any, index: int) -> Span | None:
        """Where the content of a message stands, found by marks put in front of it and behind it; None if they act.

        A mark behind it may act where a template takes a switch out of its end; then only its beginning is known.
        """
        content = messages[index]["content"]
        places = len(content) - len(content.lstrip()), len(content.rstrip())
        found = [self._marked(text, messages, tools, index, place) for place in places]
        start, stop = found
        return None if start is None else (start, start if stop is None else stop)

    def _marked(self, text: str, messages: Sequence[Message], tools: Any, index: int, place: int) -> int | None:
        """Where this place of a content is in the text; None where a mark put there changes anything else."""
        content = messages[index]["content"]
        message = {**messages[index], "content": content[:place] + mark(index) + content[place:]}
        other = self._render([*messages[:index], message, *messages[index + 1 :]], tools, False)
        before, _, after = other.partition(mark(index))
        return len(before) if before + after == text else None

    # -- from words to turns -------------------------------------------------------------------------------------------

    def _turns(
        self, text: str, messages: Sequence[Message], tools: Any, said: dict[int, _Said], every: bool
    ) -> tuple[tuple[Turn, ...], str]:
        """Turns in the order of the messages, and what the last answer lacks."""
        if _overlap(said):
            raise RowProblem("the chat template writes turns into one another")
        regions = {index: _around(parts) for index, parts in said.items() if any(parts)}
        order = sorted(regions, key=lambda index: regions[index])
        turns: dict[int, Turn] = {}
        unseen: dict[int, str] = {}
        before = 0
        for index, following in zip(order, [*order[1:], None], strict=False):
            start, stop = regions[index]
            after = text[stop : len(text) if following is None else regions[following][0]]
            before, gap = stop, text[before:start]
            if not every and messages[index]["role"] != "assistant":
                continue
            border = self._borders.border(messages, tools, index, gap, after, words=said[index][0] is not None)
            begin, unseen[index] = start - len(gap) + border.header, border.unseen
            if border.unseen and text.startswith(border.unseen, begin):  # the row's own words begin as the prompt ends
                begin, unseen[index] = begin + len(border.unseen), ""
            turns[index] = Turn(index, begin, stop + border.tail)
        answers = [index for index in turns if messages[index]["role"] == "assistant"]
        return tuple(turns[index] for index in sorted(turns)), unseen[max(answers)] if answers else ""


def _around(parts: _Said) -> Span:
    """From the first character of the parts that there are to the last."""
    found = [span for span in parts if span]
    return min(start for start, _ in found), max(stop for _, stop in found)


def _overlap(said: dict[int, _Said]) -> bool:
    order = sorted(_around(parts) for parts in said.values() if any(parts))
    return any(first[1] > second[0] for first, second in pairwise(order))


def _fitted(text: str, messages: Sequence[Message], frame: _Frame) -> dict[int, Span] | None:
    """Where words stand if the text is the frame with these words, as they are, stripped, or inside JSON."""
    if not text.startswith(frame.pieces[0]):
        return None
    place = len(frame.pieces[0])
    regions: dict[int, Span] = {}
    for (index, key), after in zip(frame.places, frame.pieces[1:], strict=True):
        length = _written(text, place, messages[index][key], after)
        if length is None:
            return None
        stop = place + length
        regions[index] = (regions[index][0] if index in regions else place, stop)
        place = stop + len(after)
    return regions if place == len(text) else None


def _written(text: str, place: int, words: str, after: str) -> int | None:
    """How many characters these words are at this place of a text, in front of `after`; None where they are not."""
    for form in (str, str.strip, str.rstrip, str.lstrip, _in_json):
        variant = form(words)
        if text.startswith(variant, place) and text.startswith(after, place + len(variant)):
            return len(variant)
    return None


def _in_json(words: str) -> str:
    return json.dumps(words, ensure_ascii=False)[1:-1]


def _split_at(text: str, order: Sequence[int]) -> list[str]:
    pieces = []
    for number in order:
        piece, _, text = text.partition(mark(number))
        pieces.append(piece)
    return [*pieces, text]
