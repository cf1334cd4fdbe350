"""Rows in, documents with labels out, and a report of what happened to each row that was not used."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hasten.data.formats import Conversation, Format, PlainText, RowProblem, detect
from hasten.data.packing import IGNORED, Example, count_supervised
from hasten.data.settings import DataSettings
from hasten.data.templates import ChatEncoder, Span
from hasten.errors import DataError


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
        lines += [f"left out, {reason}: {what.count} (row {what.first_row})" for reason, what in self.skipped.items()]
        return lines


def split(rows: Sequence[dict[str, Any]], settings: DataSettings) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training rows and held-out rows, shuffled by the seed alone.

    Raises:
        DataError: too few rows to hold any out.
    """
    if len(rows) <= settings.heldout:
        raise DataError(
            "data.heldout", f"{settings.heldout} of {len(rows)} rows", "Some rows must be left to train on.", "Lower it."
        )
    order = list(rows)
    random.Random(settings.seed).shuffle(order)
    heldout, training = order[: settings.heldout], order[settings.heldout :]
    return training[: settings.limit or None], heldout


def prepare(rows: Sequence[dict[str, Any]], tokenizer: Any, settings: DataSettings) -> Prepared:
    """Tokenize rows and mark what is learnt.

    Args:
        rows: raw rows, all of one format.
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
    for number, row in enumerate(rows, 1):
        try:
            ids, labels = _document(kind, row, encoder, settings.loss_on)
        except RowProblem as problem:
            _skip(prepared, str(problem), number)
            continue
        kept = labels[: settings.max_length]
        if count_supervised(kept) == 0:
            longest_needed = max(longest_needed, _first_learnt(labels) + 1)
            _skip(prepared, "nothing to learn within the limit", number)
            continue
        prepared.cut += len(ids) > settings.max_length
        prepared.examples.append({"input_ids": ids[: settings.max_length], "labels": kept})
    if not prepared.examples:
        remedy = f"data.max_length = {longest_needed} would do." if longest_needed else "Correct the rows."
        raise DataError("data", "; ".join(prepared.report()), "At least one row must have something to learn.", remedy)
    return prepared


def content_hash(rows: Sequence[dict[str, Any]]) -> str:
    """SHA-256 over the rows, in their order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _document(kind: Format, row: dict[str, Any], encoder: ChatEncoder, loss_on: str) -> tuple[list[int], list[int]]:
    content = kind.read(row)
    if isinstance(content, PlainText):
        text, spans = _plain(content, encoder, loss_on)
    else:
        text, spans = _chat(content, encoder, loss_on)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as cause:
        raise RowProblem("a lone surrogate, which is no character") from cause
    ids, offsets = encoder.encode(text)
    # A token that straddles a border holds part of the answer, so it is learnt.
    learnt = [any(begin < stop and start < end for start, stop in spans) for begin, end in offsets]
    return ids, [token if learn else IGNORED for token, learn in zip(ids, learnt, strict=True)]


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


def _first_learnt(labels: Sequence[int]) -> int:
    return next((index for index, label in enumerate(labels) if index and label != IGNORED), 0)


def _skip(prepared: Prepared, reason: str, row: int) -> None:
    entry = prepared.skipped.setdefault(reason, Skipped(first_row=row))
    entry.count += 1
