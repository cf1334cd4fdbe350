"""Sample answers: held-out questions that the model answers before and after training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hasten.data.conversation import Conversation, Message, RowProblem
from hasten.data.formats import detect
from hasten.data.prepare import read_content
from hasten.data.rows import Row
from hasten.data.settings import DataSettings
from hasten.data.templates import ChatEncoder
from hasten.generate import answer


@dataclass
class Sample:
    """One question with its answers."""

    messages: list[Message]
    before: str = ""
    after: str = ""

    @property
    def prompt(self) -> str:
        """The question's text."""
        return self.messages[-1]["content"]


def choose(rows: Sequence[Row], settings: DataSettings, tokenizer: Any, count: int) -> list[Sample]:
    """The first held-out conversations that can be asked, up to their first assistant turn.

    Args:
        rows: held-out rows.
        settings: how they are read, and how long a question may be.
        tokenizer: the model's.
        count: how many, at most.
    """
    samples: list[Sample] = []
    if not (count and len(rows)):
        return samples
    kind = detect(rows, settings.format, settings.columns)
    if not kind.is_chat:
        return samples
    encoder = ChatEncoder(tokenizer)
    for row in rows:
        try:
            content = read_content(row, kind, settings)
            if not isinstance(content, Conversation):
                continue
            roles = [message["role"] for message in content.messages]
            asked = content.messages[: roles.index("assistant")]
            if asked and len(encoder.encode_prompt(asked)) <= settings.max_length:
                samples.append(Sample(asked))
        except RowProblem:
            continue
        if len(samples) == count:
            break
    return samples


def answer_all(model: Any, tokenizer: Any, samples: Sequence[Sample], max_new_tokens: int) -> list[str]:
    """Greedy answers to all samples."""
    return [answer(model, tokenizer, sample.messages, max_new_tokens=max_new_tokens) for sample in samples]
