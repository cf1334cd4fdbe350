"""Chat templates: the model's own, never changed; and which of the rendered characters an assistant wrote.

Stock templates have no generation markers, so the spans are found by rendering: the text up to an assistant turn,
rendered with the generation prompt, must be the beginning of the whole text; the turn ends after its last special
token (the end of turn is learnt, the newline after it is not). Nothing is ever searched for inside content.

Tokens are made once from the whole text and matched to spans by character offsets, because sub-words merge across
borders: `<|im_start|>assistant\\n` followed by a blank has other ids than alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hasten.data.formats import Message, RowProblem
from hasten.errors import ModelError

Span = tuple[int, int]


class ChatEncoder:
    """A tokenizer with what has to be known about it for exact rows: its control tokens, begin token and ends.

    Args:
        tokenizer: a fast transformers tokenizer; it is read, never changed.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        self.control_tokens: tuple[str, ...] = tuple(dict.fromkeys([*tokenizer.all_special_tokens, *added]))
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
        except TemplateError as cause:
            roles = " ".join(message["role"] for message in messages)
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
            before = self.render(messages[:index], ask=True)
            through = self.render(messages[: index + 1])
            if not (text.startswith(before) and text.startswith(through)):
                raise RowProblem("the chat template changes earlier turns when later ones follow")
            spans.append((len(before), self._end_of_turn(text, len(before), len(through))))
        return text, spans

    def _end_of_turn(self, text: str, start: int, stop: int) -> int:
        turn = text[start:stop]
        ends = [turn.rfind(token) + len(token) for token in self.control_tokens if token in turn]
        return start + (max(ends) if ends else len(turn.rstrip()))

    def spells_control(self, text: str) -> bool:
        """Whether the text contains one of the model's control tokens as characters."""
        return any(token in text for token in self.control_tokens)

    def encode(self, text: str) -> tuple[list[int], list[Span]]:
        """Token ids and their character spans, with exactly one begin token where the model wants one.

        The template may have written the begin token as text; the tokenizer is never asked to add a second.
        """
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
            messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
            text, spans = self.assistant_spans(messages)
            last = self.tokenizer(text[slice(*spans[-1])], add_special_tokens=False).input_ids[-1]
            if self.tokenizer.decode([last]) in self.control_tokens:
                found.append(last)
        return sorted({token for token in found if token is not None})
