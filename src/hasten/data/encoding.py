"""Contents become token ids and flags for what is learnt, many at a time.

The tokenizer works on whole batches (it uses all cores); a span of characters becomes a range of tokens through the
two tokens at its borders:

    text     ...assistant\\n  yo<|im_end|>\\n        learnt characters:  ^start        ^stop
    tokens   [assistant][\\n  ][ yo][<|im_end|>][\\n]
                         ^ holds part of the answer, so it is learnt (and counted as straddling)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from hasten.data.conversation import Conversation, PlainText, RowProblem
from hasten.data.documents import Flags, Ids
from hasten.data.spans import Span
from hasten.data.templates import ChatEncoder, Rendered, refuse_surrogates

Content = Conversation | PlainText
T = TypeVar("T")


@dataclass(frozen=True)
class Encoded:
    """One row as tokens.

    Attributes:
        ids: int32 ``[tokens]``.
        learnt: bool ``[tokens]``.
        spelled: it spelled control tokens, which were encoded as text.
        straddles: a learnt token holds the end of what is not learnt.
        ended: the end token was appended (plain text).
        unseen: see `hasten.data.spans.Layout`.
        calls_as_text, tools_as_text: the template has no place for them, so they were written as text.
        clipped: characters beyond the length limit were left out before tokenization.
        missing: messages whose words the template leaves out.
        endless: no answer that is learnt ends with a control token, so the row does not teach where to stop.
    """

    ids: Ids
    learnt: Flags
    spelled: bool = False
    straddles: bool = False
    ended: bool = False
    unseen: str = ""
    calls_as_text: bool = False
    tools_as_text: bool = False
    clipped: bool = False
    missing: int = 0
    endless: bool = False


@dataclass(frozen=True)
class Text:
    """Text to tokenize, the learnt characters in it, and what is already known of the row."""

    text: str
    spans: list[Span]
    hidden: bool
    facts: dict[str, Any]


class RowEncoder:
    """Encodes rows for one run.

    Args:
        encoder: the tokenizer.
        loss_on: ``assistant`` (every turn), ``last``, or ``all``; a message's own flag wins.
        max_length: longest row in tokens that is of interest; far longer texts are clipped before they are tokenized.
        clip: False tokenizes every text whole.
    """

    def __init__(self, encoder: ChatEncoder, loss_on: str, max_length: int, clip: bool = True) -> None:
        self.encoder = encoder
        self._loss_on = loss_on
        # No token has more characters than the longest of the vocabulary, so what is behind this many characters is
        # behind the limit in tokens too; the margin keeps the cut away from the last word that counts.
        longest = max((len(token) for token in encoder.tokenizer.get_vocab()), default=1)
        self._most_characters = (max_length + 64) * longest if clip else None

    def encode(self, contents: Sequence[Content]) -> list[Encoded | RowProblem]:
        """Encode many rows; a row that cannot be used has its problem in its place."""
        texts = self.texts(contents)
        return self.flagged(texts, self.tokenized(texts))

    def encode_all(
        self, batches: Iterable[tuple[T, Sequence[Content]]]
    ) -> Iterator[tuple[T, list[Encoded | RowProblem]]]:
        """Encode batch after batch; while the tokenizer works on one, the next is rendered.

        Args:
            batches: rows, each batch with something of the caller's that comes back with it.
        """
        waiting: deque[tuple[T, list[Text | RowProblem], Future[list[Any]]]] = deque()
        with ThreadPoolExecutor(1) as worker:
            for label, contents in batches:
                texts = self.texts(contents)
                waiting.append((label, texts, worker.submit(self.tokenized, texts)))
                if len(waiting) > 1:
                    done, rendered, encodings = waiting.popleft()
                    yield done, self.flagged(rendered, encodings.result())
            for done, rendered, encodings in waiting:
                yield done, self.flagged(rendered, encodings.result())

    def tokenized(self, texts: Sequence[Text | RowProblem]) -> list[Any]:
        """The tokenizer's encodings of those texts in which nothing is hidden."""
        plain = [item.text for item in texts if isinstance(item, Text) and not item.hidden]
        return self.encoder.control.plain.encode_batch(plain, add_special_tokens=False)

    def flagged(self, texts: Sequence[Text | RowProblem], encodings: Sequence[Any]) -> list[Encoded | RowProblem]:
        """Tokens with flags, in the order of the texts."""
        remaining = iter(encodings)
        made: list[Encoded | RowProblem] = []
        for item in texts:
            if isinstance(item, RowProblem):
                made.append(item)
            elif item.hidden:
                ids, offsets, spans = self.encoder.control.encode(item.text, item.spans)
                made.append(self._by_offsets(ids, offsets, replace(item, spans=spans)))
            else:
                made.append(self._by_borders(next(remaining), item))
        return made

    # -- contents to text ----------------------------------------------------------------------------------------------

    def texts(self, contents: Sequence[Content]) -> list[Text | RowProblem]:
        """Rows as text with spans, or their problem."""
        spelled = [self._spells(content) for content in contents]
        rendered = self._rendered_at_once(contents, spelled)
        texts: list[Text | RowProblem] = []
        for index, content in enumerate(contents):
            try:
                if isinstance(content, PlainText):
                    item = self._plain(content, spelled[index])
                else:
                    item = self._chat(content, spelled[index], rendered.get(index))
                refuse_surrogates(item.text)
                texts.append(self._clipped(item))
            except RowProblem as problem:
                texts.append(problem)
        return texts

    def _spells(self, content: Content) -> bool:
        if isinstance(content, PlainText):
            end = self.encoder.tokenizer.eos_token or ""
            return self.encoder.control.spells(content.prompt + content.completion.removesuffix(end))
        return self.encoder.control.spells(content.messages) or self.encoder.control.spells(content.tools)

    def _rendered_at_once(self, contents: Sequence[Content], spelled: Sequence[bool]) -> dict[int, str]:
        """The renderings of those rows that need nothing special."""
        renderer = self.encoder.renderer
        chats = {
            index: content
            for index, content in enumerate(contents)
            if isinstance(content, Conversation)
            and content.tools is None
            and not any("tool_calls" in message for message in content.messages)
            and not (spelled[index] and self.encoder.protects)
        }
        if not chats or renderer.has_markers():
            return {}
        texts = renderer.render_all(list(chats.values()))
        return {index: text for index, text in zip(chats, texts, strict=True) if isinstance(text, str)}

    def _chat(self, content: Conversation, spelled: bool, text: str | None) -> Text:
        conversation, calls, tools = self.encoder.renderer.supported(content)
        rendered = self.encoder.conversation(conversation, text=text, hide=spelled and self.encoder.protects)
        layout = rendered.layout
        spans = self._spans(conversation, rendered)
        ended = any(layout.text.endswith(self.encoder.control_tokens, 0, stop) for _, stop in spans)
        facts = {
            "calls_as_text": calls,
            "tools_as_text": tools,
            "unseen": layout.unseen,
            "spelled": spelled,
            "missing": len(layout.left_out),
            "endless": bool(spans) and not ended and self._loss_on != "all",
        }
        return Text(layout.text, spans, rendered.hidden, facts)

    def _spans(self, conversation: Conversation, rendered: Rendered) -> list[Span]:
        """The learnt characters of a conversation."""
        turns, text = rendered.layout.turns, rendered.layout.text
        flags = conversation.flags
        if any(turn.message < 0 for turn in turns):
            if conversation.learn:
                raise RowProblem("chosen turns, and a template whose generation markers are not one for each answer")
            spans = [(turn.start, turn.stop) for turn in turns]
            return {"all": [(0, len(text))], "last": spans[-1:]}.get(self._loss_on, spans)
        answers = [turn.message for turn in turns if conversation.messages[turn.message]["role"] == "assistant"]
        if self._loss_on == "all":
            return _without([(turn.start, turn.stop) for turn in turns if flags[turn.message] is False], len(text))
        usual = answers[-1:] if self._loss_on == "last" else answers
        chosen = [turn for turn in turns if turn.start < turn.stop]
        return [
            (turn.start, turn.stop)
            for turn in chosen
            if flags[turn.message] or (flags[turn.message] is None and turn.message in usual)
        ]

    def _plain(self, content: PlainText, spelled: bool) -> Text:
        prompt, completion = content.prompt, content.completion
        control, end = self.encoder.control, self.encoder.tokenizer.eos_token or ""
        ended = bool(end) and not completion.endswith(end)
        body = completion if ended else completion.removesuffix(end)
        hidden = spelled and self.encoder.protects
        if hidden:
            prompt, body = control.hidden(prompt), control.hidden(body)
            if control.spells(prompt + body):
                raise RowProblem("a control token is spelled across the border of prompt and completion")
        text = prompt + body + end
        spans = [(0 if self._loss_on == "all" else len(prompt), len(text))]
        return Text(text, spans, hidden, {"ended": ended, "spelled": spelled})

    def _clipped(self, item: Text) -> Text:
        limit = self._most_characters
        if limit is None or len(item.text) <= limit:
            return item
        spans = [(start, min(stop, limit)) for start, stop in item.spans if start < limit]
        return replace(item, text=item.text[:limit], spans=spans, facts={**item.facts, "clipped": True})

    # -- text to tokens ------------------------------------------------------------------------------------------------

    def _by_borders(self, encoding: Any, item: Text) -> Encoded:
        """Flags from the tokens at the borders of spans; all offsets are looked at only where those are unknown."""
        ids = np.array(encoding.ids, np.int32)
        learnt = np.zeros(len(ids), np.bool_)
        straddles = False
        for start, stop in item.spans:
            first = encoding.char_to_token(start) if start < stop else None
            last = encoding.char_to_token(stop) if stop < len(item.text) else len(ids)
            if first is None or last is None:
                return self._by_offsets(encoding.ids, encoding.offsets, item)
            if encoding.token_to_chars(first)[0] < start:
                if int(ids[first]) in self.encoder.control_ids:
                    first += 1
                else:
                    straddles = True
            if last < len(ids) and encoding.token_to_chars(last)[0] < stop:
                last += 1
            learnt[first:last] = True
        return self._encoded(ids, learnt, straddles, item)

    def _by_offsets(self, ids: Sequence[int], offsets: Sequence[Span], item: Text) -> Encoded:
        """Flags from every token's characters, which are places in the text that was encoded, as the spans are."""
        learnt = np.zeros(len(ids), np.bool_)
        straddles = False
        for index, (token, (begin, end)) in enumerate(zip(ids, offsets, strict=True)):
            for start, stop in item.spans:
                # A control token of the header that swallows the blanks after it is no part of the answer.
                if begin < stop and start < end and not (begin < start and token in self.encoder.control_ids):
                    learnt[index] = True
                    straddles |= begin < start
        return self._encoded(np.array(ids, np.int32), learnt, straddles, item)

    def _encoded(self, ids: Ids, learnt: Flags, straddles: bool, item: Text) -> Encoded:
        if self.encoder.lacks_bos(item.text, ids[:1].tolist()):
            bos = np.int32(self.encoder.tokenizer.bos_token_id)
            ids, learnt = np.concatenate([[bos], ids]), np.concatenate([[False], learnt])
        learnt[:1] = False  # nothing predicts the first token
        return Encoded(ids=ids, learnt=learnt, straddles=straddles, **item.facts)


def _without(left_out: Sequence[Span], length: int) -> list[Span]:
    """What remains of a text without some spans."""
    spans, place = [], 0
    for start, stop in sorted(left_out):
        spans.append((place, start))
        place = stop
    return [(start, stop) for start, stop in [*spans, (place, length)] if start < stop]
