"""What a row becomes: a conversation, plain text, or a question with a better and a worse answer.

These are the words that the rest of the data path speaks. A conversation has one shape whatever the row looked like:
four roles, content that is always text, calls with their arguments as a mapping, and no key that holds None. So chat
templates never meet a foreign key, and nothing after this asks where a row came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]
Flags = tuple[bool | None, ...]


class RowProblem(ValueError):
    """One row cannot be used; the reason is the whole message."""


@dataclass(frozen=True)
class Conversation:
    """Turns that a chat template renders.

    Attributes:
        messages: each has `role` (system, user, assistant, tool) and `content` (a text, empty beside calls that came
            without one), and where the row has them `tool_calls`, `tool_call_id`, `name` and `reasoning_content`.
        tools: function schemas as ``{"type": "function", "function": {...}}``; None where there are none.
        learn: one for each message, or empty when all are None. None: as the setting `loss_on` says; True or False:
            the turn is learnt, or not, whatever it says.
    """

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    learn: Flags = ()

    @property
    def flags(self) -> Flags:
        """`learn`, always one for each message."""
        return self.learn or (None,) * len(self.messages)

    def after_system(self, text: str) -> Conversation:
        """The conversation with a new system turn in front; it is kept from learning where the first turn is."""
        flag = False if self.flags[:1] == (False,) else None
        messages = [{"role": "system", "content": text}, *self.messages]
        return with_flags(messages, [flag, *self.flags], self.tools)


@dataclass(frozen=True)
class PlainText:
    """Text without a template; `prompt` is read, `completion` is learnt."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Preference:
    """One question with a better and a worse answer, each as turns."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    tools: list[dict[str, Any]] | None = None

    def best(self) -> Conversation:
        """The question with the better answer, of which only the answer is learnt."""
        flags = (False,) * len(self.prompt) + (None,) * len(self.chosen)
        return with_flags([*self.prompt, *self.chosen], flags, self.tools)


def with_flags(
    messages: Sequence[Message], flags: Iterable[bool | None], tools: list[dict[str, Any]] | None = None
) -> Conversation:
    """A conversation whose `learn` is empty when no flag says anything.

    Args:
        messages: the turns.
        flags: one for each turn.
        tools: function schemas.
    """
    learn = tuple(flags)
    assert len(learn) == len(messages)
    return Conversation(list(messages), tools, learn if any(flag is not None for flag in learn) else ())
