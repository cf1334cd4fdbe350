"""A tokenizer with what has to be known about it for exact rows: its chat template, control tokens and ends.

Conversations are rendered once by the model's own template and tokenized once, because sub-words merge across borders:
`<|im_start|>assistant\\n` followed by a blank has other ids than alone. What is learnt is known as characters of the
rendered text (`hasten.data.spans`) and matched to tokens by their offsets (`hasten.data.encoding`).
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hasten.data.control_text import ControlText
from hasten.data.conversation import Conversation, Message, RowProblem
from hasten.data.rendering import Renderer
from hasten.data.spans import Layout, Span, Turn, TurnFinder
from hasten.errors import CapabilityError, ModelError

_QUESTION = [{"role": "user", "content": "a"}]
_HEADERS = ("system", "user", "assistant", "developer", "model")
_WORDS_OF_TEXT = 3
"""A template that writes at least so many words of its own inserts text; fewer are headers."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as text.

    Attributes:
        layout: the text and its turns; hidden control tokens are private characters in it.
        hidden: whether the rows spelled control tokens, which are hidden in the text.
    """

    layout: Layout
    hidden: bool = False


class ChatEncoder:
    """What a tokenizer makes of conversations.

    Args:
        tokenizer: a fast transformers tokenizer; it is read, never changed.
        day: the day that templates print; None is the day of rendering.
        control_text: False lets control tokens that rows spell out act.
    """

    def __init__(self, tokenizer: Any, *, day: datetime.date | None = None, control_text: bool = True) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        special = {str(token): number for number, token in added.items() if token.special}
        named = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
        tokens = {**dict(named), **special}
        self.control_tokens: tuple[str, ...] = tuple(tokens)
        self.control_ids = frozenset(tokens.values())
        self.renderer = Renderer(tokenizer, day)
        self.protects = control_text
        self._finder = TurnFinder(self.renderer.render, self.control_tokens)
        self._tokens, self._added = tokens, added
        self._control: ControlText | None = None
        first = tokenizer("a").input_ids[:1]
        self.wants_bos: bool = tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id]

    @property
    def control(self) -> ControlText:
        """The exchange of spelled control tokens.

        Raises:
            CapabilityError: the tokenizer is not a fast one.
        """
        if self._control is None:
            if not self.tokenizer.is_fast:
                raise CapabilityError(
                    "the tokenizer",
                    type(self.tokenizer).__name__,
                    "Learnt tokens are found by their place in the text, which only fast tokenizers know.",
                    "Use a model that has a tokenizer.json.",
                )
            self._control = ControlText(self._tokens, self._added, self.tokenizer.backend_tokenizer)
        return self._control

    @property
    def has_template(self) -> bool:
        """Whether conversations can be rendered."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def require_template(self) -> None:
        """Refuse chat without a chat template.

        Raises:
            ModelError: the tokenizer has none.
        """
        if not self.has_template:
            raise ModelError(
                "the tokenizer",
                "no chat template",
                "Conversations are rendered by the model's own template.",
                "Set data.template: chatml (or another name or .jinja file; get_chat_template(tokenizer, 'chatml') in "
                "scripts), or use rows with 'text' or 'prompt' and 'completion'.",
            )

    def conversation(self, conversation: Conversation, *, text: str | None = None, hide: bool = False) -> Rendered:
        """A conversation's text and turns.

        Args:
            conversation: in the form the template reads (`Renderer.supported`).
            text: its rendering, where it is known and nothing in it has to be hidden.
            hide: it spells control tokens that must stay text.

        Raises:
            RowProblem: the template does not accept it, or its turns cannot be told apart.
        """
        messages, tools = conversation.messages, conversation.tools
        if hide:
            messages, tools = self.control.hidden(messages), self.control.hidden(tools)
        if self.renderer.has_markers(tools):
            return Rendered(self._marked(messages, tools, bool(conversation.learn)), hide)
        if text is None:
            text = self.renderer.render(messages, tools)
        return Rendered(self._finder.find(text, messages, tools, every=bool(conversation.learn)), hide)

    def assistant_spans(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """The rendered text and the character spans of its assistant turns, ends of turn included.

        Raises:
            RowProblem: as `conversation`.
        """
        rendered = self.conversation(Conversation(list(messages)))
        spans = [
            (turn.start, turn.stop)
            for turn in rendered.layout.turns
            if turn.message < 0 or messages[turn.message]["role"] == "assistant"
        ]
        return rendered.layout.text, spans

    def inserted_text(self) -> str:
        """What the template writes in front of a lone question, when that is more than a header; else empty."""
        talk = [*_QUESTION, {"role": "assistant", "content": "b"}]
        try:
            layout = self._finder.find(self.renderer.render(talk), talk)
        except RowProblem:  # a template for conversations of another shape
            return ""
        before = layout.text[: layout.turns[0].start] if layout.turns else ""
        for token in self.control_tokens:
            before = before.replace(token, "\n")
        lines = [line.strip() for line in before.splitlines() if line.strip().rstrip(":") not in _HEADERS]
        words = [word for line in lines for word in line.split()]
        written = sum(any(character.isalpha() for character in word) for word in words)
        return " ".join(words) if written >= _WORDS_OF_TEXT else ""

    def encode(self, text: str) -> tuple[list[int], list[Span]]:
        """Token ids and their character spans, with exactly one begin token where the model wants one.

        The template may have written the begin token as text; the tokenizer is never asked to add a second.

        Raises:
            RowProblem: half a surrogate pair, which no tokenizer takes.
        """
        refuse_surrogates(text)
        made = self.control.plain.encode(text, add_special_tokens=False)
        return self._with_bos(text, made.ids, made.offsets)

    def lacks_bos(self, text: str, first: Sequence[int]) -> bool:
        """Whether a begin token has to be put in front, since the model wants one and the template wrote none.

        Args:
            text: what was tokenized.
            first: its first token id.
        """
        token, number = self.tokenizer.bos_token, self.tokenizer.bos_token_id
        return self.wants_bos and list(first) != [number] and not text.lstrip().startswith(token)

    def _with_bos(self, text: str, ids: list[int], offsets: list[Span]) -> tuple[list[int], list[Span]]:
        if self.lacks_bos(text, ids[:1]):
            return [self.tokenizer.bos_token_id, *ids], [(0, 0), *offsets]
        return ids, offsets

    def encode_prompt(self, messages: Sequence[Message], tools: Any = None) -> list[int]:
        """Token ids that ask for the next assistant turn; control tokens that the messages spell stay text.

        Raises:
            ModelError: there is no chat template.
            RowProblem: the template refuses the messages.
        """
        self.require_template()
        conversation = self.renderer.supported(Conversation(list(messages), tools))[0]
        messages, tools = conversation.messages, conversation.tools
        spelled = self.control.spells(messages) or self.control.spells(tools)
        if not (spelled and self.protects):
            return self.encode(self.renderer.render(messages, tools, ask=True))[0]
        text = self.renderer.render(self.control.hidden(messages), self.control.hidden(tools), ask=True)
        refuse_surrogates(text)
        ids, offsets, _ = self.control.encode(text, [])
        return self._with_bos(text, ids, offsets)[0]

    def end_ids(self, generation_config: Any = None) -> list[int]:
        """Every token id that ends an answer: the tokenizer's, the model's, and the template's own end of turn."""
        configured = getattr(generation_config, "eos_token_id", None)
        found = [self.tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])]
        if self.has_template:
            found.append(self._turn_end_id())
        return sorted({token for token in found if token is not None})

    def _turn_end_id(self) -> int | None:
        """The control token that ends an answer; of an earlier answer where the template closes only those."""
        turn = [*_QUESTION, {"role": "assistant", "content": "b"}]
        for talk in (turn * 2, turn):
            try:
                text, spans = self.assistant_spans(talk)
            except RowProblem:  # a template for conversations of another shape
                continue
            for span in reversed(spans):
                ids = self.encode(text[slice(*span)])[0]
                if ids and ids[-1] in self.control_ids:
                    return ids[-1]
        return None

    def _marked(self, messages: Sequence[Message], tools: Any, every: bool) -> Layout:
        """The layout that the template's own generation markers give.

        They say which parts of a turn are learnt. Where a turn begins and ends is known without them, so no marked
        header is learnt, every end of turn is, and several parts of one turn (its calls) belong to its message.
        """
        text, spans = self.renderer.generated(messages, tools)
        found = self._finder.find(text, messages, tools, every=every)
        answers = {turn.message: turn for turn in found.turns if messages[turn.message]["role"] == "assistant"}
        parts: dict[int, list[Span]] = {index: [] for index in answers}
        for start, stop in spans:
            owner = max((index for index, turn in answers.items() if turn.start < stop), default=-1)
            if start < stop:
                parts.setdefault(owner, []).append((start, stop))
        turns = [turn for turn in found.turns if turn.message not in answers]
        for index, marked in parts.items():
            turns += _within(text, answers[index], marked) if index >= 0 else [Turn(-1, *span) for span in marked]
        return Layout(text, tuple(sorted(turns, key=lambda turn: turn.start)), found.unseen, found.left_out)


def _within(text: str, turn: Turn, marked: Sequence[Span]) -> list[Turn]:
    """The marked parts of a turn without its header, the last one through its end of turn; at least an empty part."""
    starts = [max(start, turn.start) for start, _ in marked]
    stops = [stop for _, stop in marked]
    if marked:
        rest = text[turn.stop : stops[-1]]
        stops[-1] = stops[-1] if rest.strip() else turn.stop
    parts = [Turn(turn.message, start, stop) for start, stop in zip(starts, stops, strict=True) if start < stop]
    return parts or [Turn(turn.message, turn.start, turn.start)]


def refuse_surrogates(text: str) -> None:
    """Refuse half a surrogate pair.

    Raises:
        RowProblem: there is one.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as cause:
        raise RowProblem("a lone surrogate, which is no character") from cause
