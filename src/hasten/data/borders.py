"""Where turns begin and end in the text that a template writes between two contents.

    U <|im_end|>\\n<|im_start|>assistant\\n A <|im_end|>\\n<|im_start|>user\\n U
     | end of U | header of A             |  | end of A | header of U

A header ends where the generation prompt ends: the template is asked for the answer, and what it writes is compared
with what stands there. Some templates ask only behind a question, or refuse a conversation that stops there; for these
the headers of a small conversation of the template's own are known (`_Habits`).

A turn's end is what a template writes behind its content whether or not more is asked for, through the last control
token in it (Phi-3 writes the end of text only when nothing is asked for: that is not the turn's). Where the last turn
of a conversation has no end, or another one than earlier turns have, an earlier turn's is what stands there however
the conversation goes on, less what headers have in common.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hasten.data.conversation import Message, RowProblem
from hasten.data.exchange import MARK, Render, alike, behind, mark

_TAG = r"<[^<>\s]{1,64}>|\[[^\[\]\s]{1,64}\]"
_PROBES = ("user assistant user assistant", "system user assistant user assistant", "user assistant")
_ASKING = ("user", "tool")
_FOLLOWERS = ("user", "assistant", "system", "tool")
_MOST_KNOWN = 10_000
_LONGEST = 64


@dataclass(frozen=True)
class Border:
    """A turn's borders in the template's text around its content.

    Attributes:
        header: characters of the text before the content that belong to the header.
        tail: characters of the text behind the content that belong to the turn.
        unseen: what the generation prompt has behind this header.
    """

    header: int
    tail: int
    unseen: str = ""


@dataclass(frozen=True)
class _Habits:
    """What a template does in a small conversation.

    Attributes:
        headers: end of the turn before and header of an answer, and what stands between header and content.
        openings: texts that headers begin with.
        prompt: the generation prompt, where the template writes it behind an answer without being asked.
        ends: what an earlier answer ends with.
        start: the text before the first question.
    """

    headers: tuple[tuple[str, str], ...] = ()
    openings: tuple[str, ...] = ()
    prompt: str = ""
    ends: tuple[str, ...] = ()
    start: str = ""


class Borders:
    """Borders of turns for one chat template.

    Args:
        render: ``render(messages, tools, ask)`` is the template's text; raises `RowProblem`.
        controls: the model's control tokens as text.
    """

    def __init__(self, render: Render, controls: Iterable[str]) -> None:
        self._render = render
        self._controls = tuple(controls)
        odd = [re.escape(token) for token in self._controls if not re.fullmatch(_TAG, token)]
        # What is compared as a whole: `<think>` and `<tool_call>` have no beginning in common.
        self._unit = re.compile("|".join([*sorted(odd, key=len, reverse=True), _TAG, r"\w+", "."]), re.DOTALL)
        self._habits: dict[bool, _Habits] = {}
        self._known: dict[tuple[Any, ...], Border] = {}

    def border(
        self, messages: Sequence[Message], tools: Any, index: int, before: str, after: str, *, words: bool = True
    ) -> Border:
        """The border of message `index`.

        Args:
            messages: a conversation.
            tools: its tool schemas, if any.
            index: one of its messages.
            before: the text between the content before and its own.
            after: the text between its own content and the next.
            words: False: `after` begins behind its calls, and its words stand somewhere else.
        """
        kinds = [(message["role"], "tool_calls" in message) for message in messages[max(index - 1, 0) : index + 1]]
        key = (before, after, *kinds, index == len(messages) - 1, tools is None, words)
        if key not in self._known:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[key] = self._border(messages, tools, index, before, after, words)
        return self._known[key]

    def _border(
        self, messages: Sequence[Message], tools: Any, index: int, before: str, after: str, words: bool
    ) -> Border:
        follower = messages[index + 1]["role"] if index + 1 < len(messages) else None
        tail = self._tail(messages[: index + 1], tools, after, follower, words)
        if messages[index]["role"] != "assistant":  # learnt only when asked for: content and end of turn
            return Border(len(before), tail)
        header, unseen = self._header(messages[:index], tools, before)
        return Border(header, tail, unseen)

    # -- headers -------------------------------------------------------------------------------------------------------

    def _header(self, earlier: Sequence[Message], tools: Any, before: str) -> tuple[int, str]:
        """How much of `before` is the header of the answer to `earlier`, and what only the prompt has."""
        habits = self._habits_of(tools)
        asked = self._asked(earlier, tools)
        length = self._shared(before, asked) if asked else 0
        known = self._known_header(before, habits)
        if known > length and not self._known_header(before[:length], habits):
            # It cannot be asked for here; or nothing is written when it is; or the header, but behind another end.
            if asked is None or earlier[-1]["role"] not in _ASKING or self._known_header(asked, habits):
                return known, ""
        if length or (asked == "" and not habits.headers):
            return length, (asked or "")[length:]
        # No header is to be seen: the content, with what usually stands between it and its header.
        between = max((rest for _, rest in habits.headers if before.endswith(rest)), key=len, default="")
        return len(before) - len(between), asked or ""

    def _asked(self, earlier: Sequence[Message], tools: Any) -> str | None:
        """What stands between the content before and an answer that is asked for; None where it cannot be asked."""
        asked = self._behind(earlier, tools, ask=True)
        if asked is not None or not earlier:
            return asked
        try:
            plain, asked = self._render(earlier, tools, False), self._render(earlier, tools, True)
        except RowProblem:
            return None
        return asked[alike(plain, asked) :]

    def _known_header(self, before: str, habits: _Habits) -> int:
        """Where the longest end of a known header ends in a text; 0 where there is none."""
        units = self._units(before)
        best, place = 0, 0
        for header, _ in habits.headers:
            wanted = self._units(header)[::-1]
            for stop in range(len(units), 0, -1):
                length = _shared_items(wanted, units[max(stop - len(wanted), 0) : stop][::-1])
                if length > best and any(map(_telling, wanted[:length])):
                    best, place = length, sum(map(len, units[:stop]))
        return place

    # -- ends ----------------------------------------------------------------------------------------------------------

    def _tail(
        self, messages: Sequence[Message], tools: Any, after: str, follower: str | None, words: bool = True
    ) -> int:
        """How many characters of `after`, behind the last of these messages, are its turn's."""
        habits = self._habits_of(tools)
        plain = after if follower is None else self._behind(messages, tools, words=words) or ""
        plain = plain.removesuffix(habits.prompt)
        asked = self._behind(messages, tools, ask=True, words=words)
        sure = plain if asked is None else plain[: self._shared(plain, asked)]
        length = self._behind_control(sure)
        if length and after.startswith(sure[:length]):
            return length
        if follower is None:  # a model whose only end is that of the whole text learns that one
            return self._behind_control(plain) or _beginning(plain, habits.ends) or len(sure.rstrip())
        if found := _beginning(after, habits.ends):
            return found
        others = [self._behind(messages, tools, then=role, words=words) for role in _FOLLOWERS if role != follower]
        others += [asked] if follower != "assistant" else []
        shared = [after[: self._shared(after, other or "")] for other in others]
        ends = list(filter(None, (self._behind_control(self._without_opening(text, habits)) for text in shared)))
        header = self._shared_end(after, habits.start) if follower == "user" else 0
        if header and not ends:  # the first question's header is that of the next
            ends = [self._behind_control(after[: len(after) - header])]
        sure = self._without_opening(after[: self._shared(after, sure)], habits)
        return min(ends, default=0) or len(sure.rstrip())

    def _without_opening(self, text: str, habits: _Habits) -> str:
        """A text less its longest end that a header may begin with."""
        for place, _ in _placed(self._units(text)):
            if any(opening.startswith(text[place:]) for opening in habits.openings):
                return text[:place]
        return text

    def _behind_control(self, text: str) -> int:
        """Behind the last control token; 0 where there is none."""
        return max((text.rfind(token) + len(token) for token in self._controls if token in text), default=0)

    # -- habits --------------------------------------------------------------------------------------------------------

    def _habits_of(self, tools: Any) -> _Habits:
        """With tools a template may be another one."""
        key = tools is None
        if key not in self._habits:
            self._habits[key] = _Habits()  # while they are being learnt
            for probe in _PROBES:
                self._learn(probe.split(), tools)
                if self._habits[key].headers:
                    break
        return self._habits[key]

    def _learn(self, roles: Sequence[str], tools: Any) -> None:
        """Learn the habits from a conversation of these roles; none where the template refuses it."""
        talk = [{"role": role, "content": mark(index)} for index, role in enumerate(roles)]
        first, key = roles.index("assistant"), tools is None
        try:
            text = self._render(talk, tools, False)
            question, asked = (self._render(talk[:first], tools, ask) for ask in (False, True))
        except RowProblem:
            return
        headers: dict[tuple[str, str], None] = {}
        for index in range(first, len(roles), 2):
            before, wanted = _between(text, index - 1), self._behind(talk[:index], tools, ask=True) or ""
            length = self._shared(before, wanted)
            if any(map(_telling, self._units(before[:length]))):
                headers[before[:length], before[length:]] = None
        openings = self._openings(text.partition(mark(0))[0], question, asked)
        start = text.partition(mark(roles.index("user")))[0]
        self._habits[key] = _Habits(tuple(headers), openings, start=start)
        if first + 1 < len(roles):
            after = _between(text, first)
            prompt = self._prompt(talk[: first + 1], tools, after)
            openings += (prompt,) if prompt else ()
            self._habits[key] = replace(self._habits[key], openings=openings, prompt=prompt)
            end = after[: self._tail(talk[: first + 1], tools, after, roles[first + 1])]
            self._habits[key] = replace(self._habits[key], ends=(end,) if end.strip() else ())

    def _openings(self, first: str, question: str, asked: str) -> tuple[str, ...]:
        """Texts that a header begins with.

        Args:
            first: the text before the first content.
            question: a conversation that ends with a question.
            asked: the same with the generation prompt, which is a header where the question has its end without it.
        """
        closed = bool(question) and ord(question[-1]) < MARK
        found = [asked[len(question) :]] if closed and asked.startswith(question) else []
        controls = 0
        for place, unit in _placed(self._units(first)):
            if unit in self._controls and controls < 2:  # the first may be the begin token
                controls += 1
                found.append(first[place:])
            elif unit.strip():
                break
        return tuple(filter(None, found))

    def _prompt(self, talk: Sequence[Message], tools: Any, after: str) -> str:
        """The generation prompt that is written behind an answer without being asked for; empty in most templates."""
        habits = self._habits_of(tools)
        plain = self._behind(talk, tools) or ""
        if after.startswith(plain) or plain != self._behind(talk, tools, ask=True):
            return ""
        if not self._known_header(plain, habits):
            return ""
        shared = self._without_opening(after[: self._shared(after, plain)], habits)
        return plain[self._behind_control(shared) :]

    # -- texts ---------------------------------------------------------------------------------------------------------

    def _behind(self, messages: Sequence[Message], tools: Any, **how: Any) -> str | None:
        """As `behind`; None also where there are no messages, or the template refuses them."""
        try:
            return behind(self._render, messages, tools, **how) if messages else None
        except RowProblem:
            return None

    def _units(self, text: str) -> list[str]:
        return self._unit.findall(text)

    def _shared(self, first: str, second: str) -> int:
        """How many characters two texts share at the beginning, in whole units."""
        longest = alike(first, second) + 1
        first_units, second_units = self._units(first[: longest + _LONGEST]), self._units(second[: longest + _LONGEST])
        return sum(map(len, first_units[: _shared_items(first_units, second_units)]))

    def _shared_end(self, first: str, second: str) -> int:
        """How many characters two texts share at the end, in whole units."""
        first_units, second_units = self._units(first)[::-1], self._units(second)[::-1]
        return sum(map(len, first_units[: _shared_items(first_units, second_units)]))


def _shared_items(first: Sequence[str], second: Sequence[str]) -> int:
    """How many items two sequences have in common at the beginning."""
    return next(
        (place for place, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]),
        min(len(first), len(second)),
    )


def _placed(units: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Units with the place where each begins."""
    place = 0
    for unit in units:
        yield place, unit
        place += len(unit)


def _beginning(text: str, ends: Iterable[str]) -> int:
    """How many characters of a text are one of these ends; 0 where it begins with none."""
    return max((len(end) for end in ends if text.startswith(end)), default=0)


def _telling(unit: str) -> bool:
    """Whether a unit says anything, as blanks and punctuation do not."""
    return any(character.isalnum() for character in unit)


def _between(text: str, index: int) -> str:
    """What stands between the marks of one message and the next."""
    return text.partition(mark(index))[2].partition(mark(index + 1))[0]
