"""Rows in, documents with labels out, and a report of what happened to each row that was not used.

    rows ─ formats ─► conversation or text ─ encoding ─► ids and flags ─ length policy ─► Documents + DataReport

Rows are read, tokenized and written away a batch at a time, so a data set may be larger than memory. The result is
kept under a key of everything it depends on, so a second run with the same rows starts at once.
"""

from __future__ import annotations

import datetime
import random
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hasten.data import cache as prepared_cache
from hasten.data import sections
from hasten.data.conversation import Conversation, Preference, RowProblem
from hasten.data.documents import Documents, DocumentsWriter, Flags, Ids
from hasten.data.encoding import Content, Encoded, RowEncoder
from hasten.data.formats import Format, detect
from hasten.data.report import DataReport, Found
from hasten.data.rows import ListRows, Row, RowSource, Selection
from hasten.data.settings import DataSettings
from hasten.data.templates import ChatEncoder
from hasten.data.turns import neighbours_merged, system_folded
from hasten.errors import ConfigError, DataError, StorageError

_BATCH = 1000
_MOST_CHARACTERS = sections.LONGEST
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
        tenth = max(1, len(source) // 10) if len(source) > 1 else 0
        raise DataError(
            "data.heldout",
            f"{settings.heldout} of {len(source)} rows",
            "Some rows must be left to train on.",
            f"Lower it, say to {tenth}.",
        )
    order = array("q", range(len(source)))
    random.Random(settings.seed).shuffle(order)
    heldout = order[: settings.heldout]
    training = order[settings.heldout :][: settings.limit or None]
    return Selection(source, np.sort(np.array(training))), Selection(source, np.sort(np.array(heldout)))


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
        rows: raw rows.
        tokenizer: the model's own, with the chat template that is wanted.
        settings: format, length limit, which tokens are learnt.
        cache: the folder of prepared rows; None prepares them anew, in memory.
        on_rows: called with the number of rows that were done since the last call.

    Raises:
        ConfigError: `format` or `columns` do not fit the rows, or `date` is no day.
        DataError: no known columns, or no row has anything to learn; the message counts the reasons.
        ModelError: conversations without a chat template.
    """
    source = as_source(rows)
    kind = detect(source, settings.format, settings.columns)
    day = _day(settings)
    encoder = ChatEncoder(tokenizer, day=day, control_text=settings.control_tokens == "text")
    if kind.is_chat:
        encoder.require_template()
    printed = str(day) if kind.is_chat and encoder.renderer.prints_date(encoder.renderer.template()) else ""
    on_rows = on_rows or (lambda count: None)

    def run(folder: Path | None) -> tuple[Documents, DataReport]:
        return _Preparation(source, kind, encoder, settings, printed, on_rows).run(folder)

    if cache is None:
        return Prepared(*run(None))
    key = prepared_cache.key_of(source.fingerprint, kind, tokenizer, settings, printed)
    found = prepared_cache.load(cache, key)
    if found is not None:
        on_rows(len(source))
        documents, report = found
        report.place(source.name, source.place)
        return Prepared(documents, report, key=key, from_cache=True)
    try:
        return Prepared(*prepared_cache.store(cache, key, run), key=key)
    except StorageError as cause:  # nobody needs the cache but the next run
        documents, report = run(None)
        report.notes.append(f"the rows are prepared for this run only, because the cache cannot be written: {cause}")
        return Prepared(documents, report)


def read_content(row: Row, kind: Format, settings: DataSettings) -> Content:
    """What a row says, as it is rendered.

    Args:
        row: of that format.
        kind: the format.
        settings: whether turns are joined.

    Raises:
        RowProblem: it cannot be used.
    """
    content = kind.read(row)
    if isinstance(content, Preference):
        content = content.best()
    if isinstance(content, Conversation):
        if settings.fold_system:
            content = system_folded(content)
        if settings.merge_turns:
            content = neighbours_merged(content)
    return content


@dataclass
class _Batch:
    """Rows that are encoded together."""

    numbers: list[int] = field(default_factory=list)
    contents: list[Content] = field(default_factory=list)
    more: list[bool] = field(default_factory=list)
    """Whether the next content is of the same row."""
    characters: int = 0

    def add(self, number: int, content: Content, more: bool) -> None:
        self.numbers.append(number)
        self.contents.append(content)
        self.more.append(more)
        self.characters += _size(content)

    @property
    def is_full(self) -> bool:
        return len(self.numbers) >= _BATCH or self.characters > _MOST_CHARACTERS


@dataclass(frozen=True)
class _Misfit:
    """A row of which the limit leaves nothing to learn."""

    length: int = 0
    number: int = -1
    content: Content | None = None


class _Preparation:
    """One pass over the rows."""

    def __init__(
        self,
        source: RowSource,
        kind: Format,
        encoder: ChatEncoder,
        settings: DataSettings,
        day: str,
        on_rows: Callable[[int], None],
    ) -> None:
        self.source, self.kind, self.encoder, self.settings, self.on_rows = source, kind, encoder, settings, on_rows
        self.splits = settings.too_long == "split"
        self.rows = RowEncoder(encoder, settings.loss_on, settings.max_length, clip=not self.splits)
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
        self.inserted: str | None = None
        self.seen, self.lengths = array("q"), array("q")
        self.parts: list[Encoded | RowProblem] = []
        self.longest_misfit = self.clipped_misfit = _Misfit()

    def run(self, folder: Path | None) -> tuple[Documents, DataReport]:
        """All documents and the finished report; the arrays are written to `folder`."""
        told = 0
        with DocumentsWriter(folder) as writer:
            for batch, rows in self.rows.encode_all((batch, batch.contents) for batch in self._batches()):
                for number, content, more, part in zip(batch.numbers, batch.contents, batch.more, rows, strict=True):
                    self.parts.append(part)
                    if more:
                        continue
                    encoded = self._joined()
                    if isinstance(encoded, RowProblem):
                        self._skip(str(encoded), number)
                    else:
                        self._take(content, encoded, number, writer)
                self.on_rows(batch.numbers[-1] + 1 - told)
                told = batch.numbers[-1] + 1
            self.on_rows(len(self.source) - told)
            documents = writer.finish()
            self._finish(documents)
        return documents, self.report

    def _batches(self) -> Iterator[_Batch]:
        """Readable rows, a batch at a time; the others are counted."""
        batch = _Batch()
        for number, row in enumerate(self.source):
            try:
                content = read_content(row, self.kind, self.settings)
            except RowProblem as problem:
                self._skip(str(problem), number)
                continue
            for part, more in sections.sections(content) if self.splits else [(content, False)]:
                batch.add(number, part, more)
                if batch.is_full:
                    yield batch
                    batch = _Batch()
        if batch.numbers:
            yield batch

    def _joined(self) -> Encoded | RowProblem:
        """The row that has been collected."""
        parts, self.parts = self.parts, []
        whole = [part for part in parts if isinstance(part, Encoded)]
        if len(whole) < len(parts):
            return next(part for part in parts if isinstance(part, RowProblem))
        bos = self.encoder.tokenizer.bos_token_id if self.encoder.wants_bos else None
        return sections.joined(whole, bos) if len(whole) > 1 else whole[0]

    def _take(self, content: Content, encoded: Encoded, number: int, writer: DocumentsWriter) -> None:
        report, limit, length = self.report, self.settings.max_length, len(encoded.ids)
        if not encoded.learnt.any() and not encoded.clipped:
            return self._skip("nothing to learn", number)
        self.lengths.append(length)
        too_long = length > limit or encoded.clipped
        if too_long:
            report.too_long.add(number)
            report.clipped += encoded.clipped
        pieces = self._pieces(encoded)
        learnt = [piece for piece in pieces if piece[1].any()]
        if not learnt:
            return self._leave_out(content, encoded, number)
        for ids, flags in learnt:
            writer.add(ids, flags, number)
        report.unlearnt_pieces += len(pieces) - len(learnt)
        report.kept += 1
        if too_long and not self.splits:
            report.lost_tokens += length - limit
        self._note(content, encoded, number, whole=self.splits or not too_long)
        self.seen.append(hash((encoded.ids.tobytes(), encoded.learnt.tobytes())))

    def _pieces(self, encoded: Encoded) -> list[tuple[Ids, Flags]]:
        """The documents of a row, also those in which nothing is learnt."""
        limit, length = self.settings.max_length, len(encoded.ids)
        if self.settings.too_long == "drop" and (length > limit or encoded.clipped):
            return []
        made = []
        for start in range(0, length if self.splits else min(length, limit), limit):
            flags = encoded.learnt[start : start + limit].copy()
            flags[0] = False  # nothing predicts a document's first token
            made.append((encoded.ids[start : start + limit], flags))
        return made

    def _leave_out(self, content: Content, encoded: Encoded, number: int) -> None:
        """A row of which the limit leaves nothing to learn."""
        limit = self.settings.max_length
        reason = {
            "drop": f"longer than {limit:,} tokens",
            "cut": f"nothing to learn in the first {limit:,} tokens",
            "split": f"nothing to learn in pieces of {limit:,} tokens",
        }[self.settings.too_long]
        self._skip(reason, number)
        misfit = _Misfit(len(encoded.ids), number, content)
        if encoded.clipped:
            self.clipped_misfit = self.clipped_misfit if self.clipped_misfit.length else misfit
        elif misfit.length > self.longest_misfit.length:
            self.longest_misfit = misfit

    def _note(self, content: Content, encoded: Encoded, number: int, whole: bool) -> None:
        """Count what is to be known of a row that is used."""
        report = self.report
        for found, there in (
            (report.spelled, encoded.spelled),
            (report.straddling, encoded.straddles),
            (report.calls_as_text, encoded.calls_as_text),
            (report.tools_as_text, encoded.tools_as_text),
            (report.endless, encoded.endless),
            (report.missing_turns, encoded.missing > 0),
        ):
            if there:
                found.add(number)
        report.ended += encoded.ended and whole
        report.unseen = report.unseen or encoded.unseen.strip()
        if isinstance(content, Conversation) and content.messages[0]["role"] != "system":
            self._inserted(number)

    def _inserted(self, number: int) -> None:
        """A row without a system turn: the template may write one of its own."""
        if self.inserted is None:
            self.inserted = self.report.inserted = self.encoder.inserted_text()
        if not self.inserted:
            return
        self.report.inserted_rows += 1
        if self.settings.inserted_text == "refuse":
            raise DataError(
                f"{self.source.name} {self.source.place(number)}",
                f"the chat template writes {self.inserted!r}",
                "data.inserted_text is 'refuse': no text is trained on that the rows do not have.",
                "Give the rows a system turn, use another template, or keep the text.",
            )

    def _skip(self, reason: str, number: int) -> None:
        self.report.skipped.setdefault(reason, Found()).add(number)

    def _finish(self, documents: Documents) -> None:
        report = self.report
        report.documents = len(documents)
        report.real_tokens = len(documents.ids)
        report.supervised_tokens = int(documents.supervised.sum())
        report.duplicates = len(self.seen) - len(np.unique(np.array(self.seen)))
        report.measure(np.array(self.lengths, np.int64))
        report.place(self.source.name, self.source.place)
        if not len(documents):
            lines = "; ".join(report.lines())
            raise DataError(report.source, lines, "At least one row must have something to learn.", self._remedy())

    def _remedy(self) -> str:
        """What would leave something to learn."""
        if not self.clipped_misfit.length:
            needed = self.longest_misfit.length
            return f"data.max_length = {needed} holds them whole." if needed else "Correct the rows."
        # Only the beginning of such rows was tokenized, so the length of one is found now.
        whole = RowEncoder(self.encoder, self.settings.loss_on, self.settings.max_length, clip=False)
        content, number = self.clipped_misfit.content, self.clipped_misfit.number
        assert content is not None
        (encoded,) = whole.encode([content])
        if isinstance(encoded, RowProblem) or not encoded.learnt.any():
            return "Correct the rows."
        return f"data.max_length = {len(encoded.ids)} holds {self.source.place(number)} whole."


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
