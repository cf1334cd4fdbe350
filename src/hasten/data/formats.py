"""Rows become conversations: the format is found from the columns, said, and the same for all rows.

| format | columns |
|---|---|
| messages | `messages`: list of {role, content} |
| conversations | `conversations`: list of {from, value} or {role, content} (ShareGPT) |
| alpaca | `instruction`, `output`, optional `input`, `system` |
| question-answer | `question`, `answer` |
| prompt-completion | `prompt`, `completion`: one text whose second part is learnt |
| text | `text`: language modelling |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hasten.errors import DataError, nearest

Message = dict[str, Any]

ROLE_ALIASES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "input": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "output": "assistant",
}


@dataclass(frozen=True)
class Conversation:
    """Turns that a chat template renders."""

    messages: list[Message]


@dataclass(frozen=True)
class PlainText:
    """Text without a template; `prompt` is read, `completion` is learnt."""

    prompt: str
    completion: str


class RowProblem(ValueError):
    """One row cannot be used; the reason is the whole message."""


@dataclass(frozen=True)
class Format:
    """A row format: the columns that name it, and how a row is read."""

    name: str
    columns: tuple[str, ...]
    read: Callable[[dict[str, Any]], Conversation | PlainText]

    @property
    def is_chat(self) -> bool:
        """Whether its rows are rendered by the chat template."""
        return self.name not in ("prompt-completion", "text")


def detect(rows: Sequence[dict[str, Any]]) -> Format:
    """The format whose columns the rows have.

    Raises:
        DataError: no known columns; the nearest real name is proposed for a misspelt one.
    """
    present = {key for row in rows[:1000] for key, value in row.items() if value is not None}
    for candidate in FORMATS:
        if present.issuperset(candidate.columns):
            return candidate
    known = [column for candidate in FORMATS for column in candidate.columns]
    unknown = sorted(present.difference(known))
    typos = [f"'{column}' looks like '{match}'" for column in unknown if (match := nearest(column, known))]
    expected = "; ".join("+".join(candidate.columns) for candidate in FORMATS)
    raise DataError(
        "data columns",
        ", ".join(sorted(present)) or "none",
        f"One of these sets is needed: {expected}.",
        f"{'; '.join(typos)}: rename it." if typos else "Rename your columns.",
    )


def _text(value: Any, name: str) -> str:
    if value is None:
        raise RowProblem(f"None in '{name}'")
    if not isinstance(value, str):
        raise RowProblem(f"'{name}' is not text")
    return value


def _filled(value: Any, name: str) -> str:
    text = _text(value, name)
    if not text.strip():
        raise RowProblem(f"empty '{name}'")
    return text


def read_messages(turns: Any) -> Conversation:
    """Turns of either naming as a conversation with roles system, user and assistant.

    Raises:
        RowProblem: no turns, an unknown role, or content that is missing.
    """
    if not isinstance(turns, list) or not turns:
        raise RowProblem("no messages")
    messages: list[Message] = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise RowProblem("a message that is no object")
        # Arrow gives every row every key, so a key that is there may hold None.
        role = str(turn.get("role") or turn.get("from") or "")
        if role not in ROLE_ALIASES:
            raise RowProblem(f"unknown role '{role}'")
        content = _text(turn["content"] if turn.get("content") is not None else turn.get("value"), "content")
        if ROLE_ALIASES[role] != "system" and not content.strip():
            raise RowProblem("empty content")
        messages.append({"role": ROLE_ALIASES[role], "content": content})
    if all(message["role"] != "assistant" for message in messages):
        raise RowProblem("no assistant turn")
    return Conversation(messages)


def _read_alpaca(row: dict[str, Any]) -> Conversation:
    question = _filled(row.get("instruction"), "instruction")
    if row.get("input"):
        question = f"{question}\n\n{_text(row['input'], 'input')}"
    messages: Iterable[tuple[str, str]] = [("user", question), ("assistant", _filled(row.get("output"), "output"))]
    if row.get("system"):
        messages = [("system", _text(row["system"], "system")), *messages]
    return Conversation([{"role": role, "content": content} for role, content in messages])


def _read_question(row: dict[str, Any]) -> Conversation:
    return Conversation(
        [
            {"role": "user", "content": _filled(row.get("question"), "question")},
            {"role": "assistant", "content": _filled(row.get("answer"), "answer")},
        ]
    )


FORMATS = (
    Format("messages", ("messages",), lambda row: read_messages(row.get("messages"))),
    Format("conversations", ("conversations",), lambda row: read_messages(row.get("conversations"))),
    Format("alpaca", ("instruction", "output"), _read_alpaca),
    Format("question-answer", ("question", "answer"), _read_question),
    Format(
        "prompt-completion",
        ("prompt", "completion"),
        lambda row: PlainText(_text(row.get("prompt"), "prompt"), _filled(row.get("completion"), "completion")),
    ),
    Format("text", ("text",), lambda row: PlainText("", _filled(row.get("text"), "text"))),
)
