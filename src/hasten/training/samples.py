"""Sample answers: held-out questions that the model answers before and after training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hasten.data.conversation import Conversation, Message, Preference, RowProblem
from hasten.data.formats import detect
from hasten.data.settings import DataSettings
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


def choose(rows: Sequence[dict[str, Any]], count: int, settings: DataSettings) -> list[Sample]:
    """The first usable held-out conversations, up to their first assistant turn."""
    samples: list[Sample] = []
    if not len(rows) or not count:
        return samples
    kind = detect(rows, settings.format, settings.columns)
    for row in rows:
        if len(samples) == count:
            break
        try:
            content = kind.read(row)
        except RowProblem:
            continue
        if isinstance(content, Preference):
            content = content.best()
        if isinstance(content, Conversation):
            roles = [message["role"] for message in content.messages]
            samples.append(Sample(content.messages[: roles.index("assistant")]))
    return [sample for sample in samples if sample.messages]


def answer_all(model: Any, tokenizer: Any, samples: Sequence[Sample], max_new_tokens: int) -> list[str]:
    """Greedy answers to all samples."""
    return [answer(model, tokenizer, sample.messages, max_new_tokens=max_new_tokens) for sample in samples]
