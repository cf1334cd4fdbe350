"""Chat templates: the model's own, never changed; and which of the rendered characters an assistant wrote.

Stock templates have no generation markers, so the spans are found by rendering. A turn starts where the text before
it, rendered with the generation prompt, ends; both must be the beginning of the whole text. What is rendered alike
whether another answer is asked for or not is the turn itself, without what a template adds when a conversation is over
(Phi-3 adds the end of text). In it the turn ends after its last special token: the end of turn is learnt, the newline
after it is not. Nothing is ever searched for inside content.

Tokens are made once from the whole text and matched to spans by character offsets, because sub-words merge across
borders: `<|im_start|>assistant\\n` followed by a blank has other ids than alone.
"""

from __future__ import annotations

import os.path
from collections.abc import Sequence
from typing import Any

from hasten.data.formats import Message, RowProblem
from hasten.errors import CapabilityError, ModelError

Span = tuple[int, int]


class ChatEncoder:
    """A tokenizer with what has to be known about it for exact rows: its control tokens, begin token and ends.

    Args:
        tokenizer: a fast transformers tokenizer; it is read, never changed.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        added = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.control_tokens: tuple[str, ...] = tuple(dict.fromkeys([*tokenizer.all_special_tokens, *added.values()]))
        self.control_ids = frozenset([*tokenizer.all_special_ids, *added])
        first = tokenizer("a").input_ids[:1]
        self.wants_bos: bool = tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id]

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
                "Use get_chat_template(tokenizer, 'chatml'), or rows with 'text' or 'prompt' and 'completion'.",
            )

    def render(self, messages: Sequence[Message], *, ask: bool = False) -> str:
        """The template's text for these messages, rendered in transformers' sandbox.

        Args:
            messages: role and content of each turn.
            ask: add the header of the next assistant turn.

        Raises:
            RowProblem: the template does not accept these messages.
        """
        from jinja2 import TemplateError

        try:
            return self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ask)
        except (TemplateError, TypeError) as cause:
            roles = " ".join(message["role"] for message in messages[:8]) + (" ..." if len(messages) > 8 else "")
            raise RowProblem(f"the chat template refuses the turns '{roles}' ({cause})") from cause

    def assistant_spans(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """The rendered text and the character spans of its assistant turns, ends of turn included.

        Raises:
            RowProblem: the template rewrites earlier turns, so that spans cannot be found.
        """
        text = self.render(messages)
        spans: list[Span] = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            if index == 0:
                raise RowProblem("an assistant turn comes first")
            start = len(before := self.render(messages[:index], ask=True))
            through = self.render(messages[: index + 1])
            body = os.path.commonprefix([through, self.render(messages[: index + 1], ask=True)])
            # A model whose only end is that of the whole text learns that one.
            rest = through if index == len(messages) - 1 else body
            stop = start + (
                self._end_of_turn(body[start:]) or self._end_of_turn(rest[start:]) or len(body[start:].rstrip())
            )
            if not (text.startswith(before) and text.startswith(through[:stop])):
                raise RowProblem("the chat template changes earlier turns when later ones follow")
            spans.append((start, stop))
        return text, spans

    def _end_of_turn(self, turn: str) -> int:
        """Behind the last control token; 0 where there is none."""
        return max((turn.rfind(token) + len(token) for token in self.control_tokens if token in turn), default=0)

    def spells_control(self, text: str) -> bool:
        """Whether the text contains one of the model's control tokens as characters."""
        return any(token in text for token in self.control_tokens)

    def encode(self, text: str) -> tuple[list[int], list[Span]]:
        """Token ids and their character spans, with exactly one begin token where the model wants one.

        The template may have written the begin token as text; the tokenizer is never asked to add a second.

        Raises:
            RowProblem: half a surrogate pair, which no tokenizer takes.
            CapabilityError: the tokenizer does not say where in the text its tokens are.
        """
        if not self.tokenizer.is_fast:
            raise CapabilityError(
                "the tokenizer",
                type(self.tokenizer).__name__,
                "Learnt tokens are found by their place in the text, which only fast tokenizers know.",
                "Use a model that has a tokenizer.json.",
            )
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as cause:
            raise RowProblem("a lone surrogate, which is no character") from cause
        made = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = list(made.input_ids), [tuple(span) for span in made.offset_mapping]
        if self.wants_bos and ids[:1] != [self.tokenizer.bos_token_id]:
            return [self.tokenizer.bos_token_id, *ids], [(0, 0), *offsets]
        return ids, offsets

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids that ask for the next assistant turn.

        Raises:
            ModelError: there is no chat template.
            RowProblem: the template refuses the messages, or their content spells a control token.
        """
        self.require_template()
        if any(self.spells_control(message["content"]) for message in messages):
            raise RowProblem("the text spells one of the model's control tokens")
        return self.encode(self.render(messages, ask=True))[0]

    def end_ids(self, generation_config: Any = None) -> list[int]:
        """Every token id that ends an answer: the tokenizer's, the model's, and the template's own end of turn."""
        configured = getattr(generation_config, "eos_token_id", None)
        found = [self.tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])]
        if self.has_template:
            found.append(self._turn_end_id())
        return sorted({token for token in found if token is not None})

    def _turn_end_id(self) -> int | None:
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        try:
            text, spans = self.assistant_spans(messages)
        except RowProblem:  # a template for conversations of another shape
            return None
        ids = self.tokenizer(text[slice(*spans[-1])], add_special_tokens=False).input_ids
        return ids[-1] if ids and ids[-1] in self.control_ids else None
