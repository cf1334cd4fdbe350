"""Rows in, documents with labels out, and a report of what happened to each row that was not used.

    rows ─ formats ─► conversation or text ─ encoding ─► ids and flags ─ length policy ─► Documents + DataReport

Rows are read, tokenized and written away a batch at a time, so a data set may be larger than memory. The result is
kept under a key of everything it depends on, so a second run with the same rows starts at once.
"""

from __future__ import annotations

import datetime
import itertools
import random
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hasten.data import cache as prepared_cache
from hasten.data.conversation import Conversation, Preference, RowProblem
from hasten.data.documents import Documents, DocumentsWriter
from hasten.data.encoding import Content, Encoded, RowEncoder
from hasten.data.formats import Format, detect
from hasten.data.report import DataReport, Found
from hasten.data.rows import ListRows, Row, RowSource, Selection
from hasten.data.settings import DataSettings
from hasten.data.templates import ChatEncoder
from hasten.data.turns import neighbours_merged, system_folded
from hasten.errors import ConfigError, DataError, StorageError
from hasten.files import require_writable

_BATCH = 1000
_MOST_CHARACTERS = 4_000_000
"""Characters of rows that are tokenized at once; a batch of huge rows is cut short."""


@dataclass
class Prepared:
    """Documents ready for the collator, and what is to be said of them."""

    documents: Documents
    report: DataReport
    key: str = ""
    """What the cache knows them by; empty where nothing was cached."""
    from_cache: bool = False


def split(rows: RowSource | Sequence[Row], settings: DataSettings) -> tuple[RowSource, RowSource]:
    """Training rows and held-out rows, chosen by the seed alone; each in the order of the source.

    Raises:
        DataError: too few rows to hold any out.
    """
    source = as_source(rows)
    if len(source) <= settings.heldout:
        raise DataError(
            "data.heldout",
            f"{settings.heldout} of {len(source)} rows",
            "Some rows must be left to train on.",
            "Lower it.",
        )
    order = list(range(len(source)))
    random.Random(settings.seed).shuffle(order)
    heldout, training = order[: settings.heldout], order[settings.heldout :]
    training = training[: settings.limit or None]
    return Selection(source, sorted(training)), Selection(source, sorted(heldout))


def as_source(rows: RowSource | Sequence[Row]) -> RowSource:
    """Rows as a `RowSource`."""
    return rows if isinstance(rows, RowSource) else ListRows(list(rows))


def prepare(
    rows: RowSource | Sequence[Row],
    tokenizer: Any,
    settings: DataSettings,
    *,
    cache: Path | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> Prepared:
    """Tokenize rows and mark what is learnt.

    Args:
        rows: raw rows, all of one format.
        tokenizer: the model's own, with the chat template that is wanted.
        settings: format, length limit, which tokens are learnt.
        cache: the folder of prepared rows; None prepares them anew, in memory.
        on_rows: called with the number of rows of each finished batch.

    Raises:
        ConfigError: `format` or `columns` do not fit the rows, or `date` is no day.
        DataError: no known columns, or no row has anything to learn; the message counts the reasons.
        ModelError: conversations without a chat template.
    """
    source = as_source(rows)
    kind = detect(itertools.islice(source, _BATCH), settings.format, settings.columns)
    day = _day(settings)
    encoder = ChatEncoder(tokenizer, day=day, control_text=settings.control_tokens == "text")
    if kind.is_chat:
        encoder.require_template()
    prints_date = kind.is_chat and encoder.renderer.prints_date(encoder.renderer.template())
    job = _Preparation(source, kind, encoder, settings, str(day) if prints_date else "", on_rows)
    if cache is not None and not _writable(cache):
        job.report.notes.append(f"the cache '{cache}' cannot be written: rows are prepared for this run only")
        cache = None
    if cache is None:
        return Prepared(*job.run(None))
    key = prepared_cache.key_of(source.fingerprint, tokenizer, settings, job.day)
    found = prepared_cache.load(cache, key)
    if found is not None:
        documents, report = found
        report.source = source.name  # the same rows may stand in a file of another name
        job.on_rows(len(source))
        return Prepared(documents, report, key=key, from_cache=True)
    documents, report = prepared_cache.store(cache, key, job.run)
    return Prepared(documents, report, key=key)


class _Preparation:
    """One pass over the rows."""

    def __init__(
        self,
        source: RowSource,
        kind: Format,
        encoder: ChatEncoder,
        settings: DataSettings,
        day: str,
        on_rows: Callable[[int], None] | None,
    ) -> None:
        self.source, self.kind, self.encoder, self.settings, self.day = source, kind, encoder, settings, day
        self.on_rows = on_rows or (lambda count: None)
        self.rows = RowEncoder(encoder, settings.loss_on, settings.max_length, clip=settings.too_long != "split")
        self.report = DataReport(
            source=source.name,
            format=kind.name,
            rows=len(source),
            max_length=settings.max_length,
            too_long_policy=settings.too_long,
            spelled_as=settings.control_tokens,
            day=day,
            notes=[note for note in [kind.note] if note],
        )
        self.seen, self.lengths = array("q"), array("q")

    def run(self, folder: Path | None) -> tuple[Documents, DataReport]:
        """All documents and the finished report; the arrays are written to `folder`."""
        writer = DocumentsWriter(folder)
        told = 0
        for numbers, rows in self.rows.encode_all(self._batches()):
            for number, encoded in zip(numbers, rows, strict=True):
                if isinstance(encoded, RowProblem):
                    self._skip(str(encoded), number)
                else:
                    self._take(encoded, number, writer)
            self.on_rows(numbers[-1] + 1 - told)
            told = numbers[-1] + 1
        self.on_rows(len(self.source) - told)
        documents = writer.finish()
        self._finish(documents)
        return documents, self.report

    def _batches(self) -> Iterator[tuple[list[int], list[Content]]]:
        """Readable rows with their index, a batch at a time; the others are counted."""
        numbers: list[int] = []
        contents: list[Content] = []
        characters = 0
        for number, row in enumerate(self.source):
            try:
                content = self._read(row)
            except RowProblem as problem:
                self._skip(str(problem), number)
                continue
            numbers.append(number)
            contents.append(content)
            characters += _size(content)
            if len(numbers) == _BATCH or characters > _MOST_CHARACTERS:
                yield numbers, contents
                numbers, contents, characters = [], [], 0
        if numbers:
            yield numbers, contents

    def _read(self, row: Row) -> Content:
        content = self.kind.read(row)
        if isinstance(content, Preference):
            content = content.best()
        if not isinstance(content, Conversation):
            return content
        if self.settings.fold_system:
            content = system_folded(content)
        if self.settings.merge_turns:
            content = neighbours_merged(content)
        if content.messages[0]["role"] != "system":
            self._inserted(self.source)
        return content

    def _inserted(self, source: RowSource) -> None:
        """A row without a system turn: the template may write one of its own."""
        if self.report.inserted_rows == 0:
            self.report.inserted = self.encoder.inserted_text()
        self.report.inserted_rows += 1
        if self.report.inserted and self.settings.inserted_text == "refuse":
            raise DataError(
                source.name,
                f"the chat template writes {self.report.inserted!r}",
                "data.inserted_text is 'refuse': no text is trained on that the rows do not have.",
                "Give the rows a system turn, use another template, or keep the text.",
            )

    def _take(self, encoded: Encoded, number: int, writer: DocumentsWriter) -> None:
        report, limit, place = self.report, self.settings.max_length, self.source.place(number)
        length = len(encoded.ids)
        if not encoded.learnt.any() and not encoded.clipped:
            return self._skip("nothing to learn", number)
        self.lengths.append(length)
        if length > limit or encoded.clipped:
            report.too_long.add(place)
            report.clipped += encoded.clipped
            if self.settings.too_long == "drop":
                return self._skip(f"longer than {limit} tokens", number)
            if self.settings.too_long == "cut":
                if not encoded.learnt[:limit].any():
                    report.longest_needed = max(report.longest_needed, length)
                    return self._skip(f"nothing to learn in the first {limit} tokens", number)
                report.lost_tokens += length - limit
        for name, there in (
            ("spelled", encoded.spelled),
            ("straddling", encoded.straddles),
            ("calls_as_text", encoded.calls_as_text),
            ("tools_as_text", encoded.tools_as_text),
            ("missing_turns", encoded.missing > 0),
        ):
            if there:
                getattr(report, name).add(place)
        report.ended += encoded.ended
        report.unseen = report.unseen or encoded.unseen.strip()
        report.kept += 1
        self.seen.append(hash((encoded.ids.tobytes(), encoded.learnt.tobytes())))
        return self._write(encoded, number, writer)

    def _write(self, encoded: Encoded, number: int, writer: DocumentsWriter) -> None:
        limit = self.settings.max_length
        stop = len(encoded.ids) if self.settings.too_long == "split" else limit
        for start in range(0, min(len(encoded.ids), stop), limit):
            learnt = encoded.learnt[start : start + limit].copy()
            learnt[0] = False  # nothing predicts a document's first token
            if learnt.any():
                writer.add(encoded.ids[start : start + limit], learnt, number)
            else:
                self.report.unlearnt_pieces += 1

    def _skip(self, reason: str, number: int) -> None:
        self.report.skipped.setdefault(reason, Found()).add(self.source.place(number))

    def _finish(self, documents: Documents) -> None:
        report = self.report
        report.documents = len(documents)
        report.real_tokens = len(documents.ids)
        report.supervised_tokens = int(documents.supervised.sum())
        report.duplicates = len(self.seen) - len(np.unique(np.array(self.seen)))
        report.measure(np.array(self.lengths, np.int64))
        if not report.inserted:
            report.inserted_rows = 0
        if not len(documents):
            needed = report.longest_needed
            remedy = f"data.max_length = {needed} holds them whole." if needed else "Correct the rows."
            lines = "; ".join(report.lines())
            raise DataError(report.source, lines, "At least one row must have something to learn.", remedy)


def content_hash(rows: RowSource | Sequence[Row]) -> str:
    """SHA-256 of the rows, in their order."""
    return as_source(rows).fingerprint


def _writable(folder: Path) -> bool:
    try:
        require_writable(folder)
    except StorageError:
        return False
    return True


def _size(content: Content) -> int:
    if isinstance(content, Conversation):
        return sum(len(message["content"]) for message in content.messages)
    return len(content.prompt) + len(content.completion)


def _day(settings: DataSettings) -> datetime.date:
    if not settings.date:
        return datetime.date.today()
    try:
        return datetime.date.fromisoformat(settings.date)
    except ValueError as cause:
        raise ConfigError("data.date", repr(settings.date), "It is a day, YYYY-MM-DD.", "Write 2026-01-31.") from cause
