"""Rows in, documents with labels out, and a report of what happened to each row that was not used."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hasten.data.formats import Conversation, Format, PlainText, RowProblem, detect
from hasten.data.packing import IGNORED, Example, count_supervised
from hasten.data.settings import DataSettings
from hasten.data.sources import Row
from hasten.data.templates import ChatEncoder, Span
from hasten.errors import DataError

_MOST_REASONS = 8


@dataclass
class Skipped:
    """Rows left out for one reason."""

    count: int = 0
    first_row: int = 0


@dataclass
class Prepared:
    """Documents ready for the collator."""

    examples: list[Example]
    format: str
    rows: int
    skipped: dict[str, Skipped] = field(default_factory=dict)
    cut: int = 0
    """Documents that were longer than the limit and lost their end."""

    @property
    def supervised_tokens(self) -> int:
        """Tokens that are learnt."""
        return sum(count_supervised(example["labels"]) for example in self.examples)

    @property
    def real_tokens(self) -> int:
        """All tokens."""
        return sum(len(example["input_ids"]) for example in self.examples)

    def report(self) -> list[str]:
        """What was found and what was left out, one sentence a line."""
        lines = [
            f"{len(self.examples)} of {self.rows} rows ({self.format}), {self.real_tokens} tokens, "
            f"{self.supervised_tokens} of them learnt"
        ]
        if self.cut:
            lines.append(f"{self.cut} rows were longer than the limit and were cut")
        reasons = sorted(self.skipped.items(), key=lambda item: -item[1].count)
        for reason, what in reasons[:_MOST_REASONS]:
            lines.append(
                f"left out, {reason}: {what.count} ({'' if what.count == 1 else 'first: '}row {what.first_row})"
            )
        if others := reasons[_MOST_REASONS:]:
            lines.append(f"left out for {len(others)} other reasons: {sum(what.count for _, what in others)}")
        return lines


class Rows(list[Row]):
    """Rows that remember where they stood in their source, so that messages can name them after shuffling."""

    def __init__(self, rows: Iterable[Row], numbers: Iterable[int]) -> None:
        super().__init__(rows)
        self.numbers = list(numbers)


def split(rows: Sequence[Row], settings: DataSettings) -> tuple[Rows, Rows]:
    """Training rows and held-out rows, shuffled by the seed alone.

    Raises:
        DataError: too few rows to hold any out.
    """
    if len(rows) <= settings.heldout:
        raise DataError(
            "data.heldout",
            f"{settings.heldout} of {len(rows)} rows",
            "Some rows must be left to train on.",
            "Lower it.",
        )
    order = list(range(len(rows)))
    random.Random(settings.seed).shuffle(order)
    heldout, training = order[: settings.heldout], order[settings.heldout :]
    training = training[: settings.limit or None]
    return (
        Rows((rows[index] for index in training), (index + 1 for index in training)),
        Rows((rows[index] for index in heldout), (index + 1 for index in heldout)),
    )


def prepare(rows: Sequence[Row], tokenizer: Any, settings: DataSettings) -> Prepared:
    """Tokenize rows and mark what is learnt.

    Args:
        rows: raw rows, all of one format; `Rows` are named by their place in the source.
        tokenizer: the model's own.
        settings: length limit and which tokens are learnt.

    Raises:
        DataError: no known columns, or no row has anything to learn; the message counts the reasons.
        ModelError: conversations without a chat template.
    """
    kind = detect(rows)
    encoder = ChatEncoder(tokenizer)
    if kind.is_chat:
        encoder.require_template()
    prepared = Prepared([], kind.name, len(rows))
    longest_needed = 0
    numbers = rows.numbers if isinstance(rows, Rows) else range(1, len(rows) + 1)
    for number, row in zip(numbers, rows, strict=True):
        try:
            ids, labels = _document(kind, row, encoder, settings.loss_on)
        except RowProblem as problem:
            _skip(prepared, str(problem), number)
            continue
        kept = labels[: settings.max_length]
        if count_supervised(labels) == 0:
            _skip(prepared, "nothing to learn", number)
            continue
        if count_supervised(kept) == 0:
            longest_needed = max(longest_needed, len(ids))
            _skip(prepared, f"nothing to learn in the first {settings.max_length} tokens", number)
            continue
        prepared.cut += len(ids) > settings.max_length
        prepared.examples.append({"input_ids": ids[: settings.max_length], "labels": kept})
    if not prepared.examples:
        remedy = f"data.max_length = {longest_needed} holds them whole." if longest_needed else "Correct the rows."
        raise DataError("data", "; ".join(prepared.report()), "At least one row must have something to learn.", remedy)
    return prepared


def content_hash(rows: Sequence[Row]) -> str:
    """SHA-256 over the rows, in their order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _document(kind: Format, row: Row, encoder: ChatEncoder, loss_on: str) -> tuple[list[int], list[int]]:
    content = kind.read(row)
    if isinstance(content, PlainText):
        text, spans = _plain(content, encoder, loss_on)
    else:
        text, spans = _chat(content, encoder, loss_on)
    ids, offsets = encoder.encode(text)
    labels = [IGNORED] * len(ids)
    for index, (token, (begin, end)) in enumerate(zip(ids, offsets, strict=True)):
        for start, stop in spans:
            # A token that straddles a border holds part of the answer, so it is learnt; not so a control token of the
            # header that swallows the blanks after it.
            if begin < stop and start < end and not (begin < start and token in encoder.control_ids):
                labels[index] = token
    return ids, labels


def _chat(conversation: Conversation, encoder: ChatEncoder, loss_on: str) -> tuple[str, list[Span]]:
    if any(encoder.spells_control(message["content"]) for message in conversation.messages):
        raise RowProblem("content spells a control token of the model")
    text, spans = encoder.assistant_spans(conversation.messages)
    if loss_on == "all":
        return text, [(0, len(text))]
    return text, spans[-1:] if loss_on == "last" else spans


def _plain(content: PlainText, encoder: ChatEncoder, loss_on: str) -> tuple[str, list[Span]]:
    end = encoder.tokenizer.eos_token or ""
    body = (content.prompt + content.completion).removesuffix(end)
    if encoder.spells_control(body):
        raise RowProblem("text spells a control token of the model")
    text = body + end
    return text, [(0 if loss_on == "all" else len(content.prompt), len(text))]


def _skip(prepared: Prepared, reason: str, row: int) -> None:
    entry = prepared.skipped.setdefault(reason, Skipped(first_row=row))
    entry.count += 1
    entry.first_row = min(entry.first_row, row)
