"""What rows became, for people: the full report, a histogram of lengths, and rows with the learnt text marked.

Row text comes from anywhere, so it is printed inertly: no markup, and control characters as symbols. On a terminal the
learnt text is green and the rest dim; without colour it stands in ⟦brackets⟧, so a mask can be read in a log too. Only
tokens that are shown are decoded.
"""

from __future__ import annotations

import os.path
import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from hasten.data.bins import best_fit, efficiency
from hasten.data.documents import Documents, Flags, Ids
from hasten.data.prepare import Prepared, prepare
from hasten.data.report import DataReport, Found
from hasten.data.rows import RowSource
from hasten.data.settings import DataSettings
from hasten.errors import DataError
from hasten.report.console import has_blocks, representable

OPEN, CLOSE = "⟦", "⟧"
_PLAIN_MARKS = "{+", "+}"
"""For streams that lack the brackets."""
_WHOLE, _HEAD, _TAIL = 120, 64, 36
"""Tokens of the longest stretch that is shown whole, and of a longer one's ends."""
_FIRST_RUNS, _LAST_RUNS = 16, 8
_INDENT, _BAR, _WIDTH = 9, 40, 120
_LOOK = 32
"""Tokens that are looked at beside a border for the rest of a character."""
_LONGEST_SHOWN = 16_384
_TRIED = 50
"""Rows among which one is looked for that can be rendered."""
_MEASURED_WHOLE = 4
"""Rows of fewer limits than this are surely measured whole; longer ones may have been clipped before tokenization."""
_BROKEN = "\ufffd"
_MOST_BYTES = 4
"""Of a character, so the tokens that may share one."""
_JOINERS = "\u200c\u200d"  # inside emoji and words of several scripts; they do nothing to a terminal


@dataclass(frozen=True)
class Piece:
    """A stretch of a document that is learnt, or is not."""

    text: str
    learnt: bool


def pieces(documents: Documents, index: int, tokenizer: Any, *, shorten: bool = False) -> list[Piece]:
    """A document's text in stretches of learnt and other tokens.

    A character of several tokens belongs to the stretch with its last one.

    Args:
        documents: tokenized rows.
        index: which of them.
        tokenizer: the one that made them.
        shorten: long stretches lose their middle, and a document of very many the ones in its middle; the number of
            tokens left out is said there.
    """
    return _pieces(*documents.of(index), tokenizer, shorten)


def _pieces(ids: Ids, learnt: Flags, tokenizer: Any, shorten: bool, limit: int = 0) -> list[Piece]:
    """As `pieces`; a limit within the document is marked."""
    cuts = {0, *((learnt[1:] != learnt[:-1]).nonzero()[0] + 1).tolist(), len(ids)}
    marked = 0 < limit < len(ids)
    borders = sorted(cuts | {limit} if marked else cuts)
    runs = list(zip(borders, borders[1:], strict=False))
    decoded = _Decoded(tokenizer, ids.tolist())
    left_out = range(_FIRST_RUNS, len(runs) - _LAST_RUNS) if shorten else range(0)
    text_of = decoded.shortened if shorten else decoded.between
    made: list[Piece] = []
    for number, (start, stop) in enumerate(runs):
        if marked and start == limit:
            made.append(Piece(f"\n[--- data.max_length {limit:,} ends here ---]\n", False))
        if number not in left_out:
            made.append(Piece(text_of(start, stop), bool(learnt[start])))
        elif number == left_out[0]:
            tokens = runs[left_out[-1]][1] - start
            made.append(Piece(f"\n[... {len(left_out)} stretches of {tokens:,} tokens ...]\n", False))
    return made


class _Decoded:
    """The text of any stretch of tokens, without decoding those that are far from it."""

    def __init__(self, tokenizer: Any, ids: list[int]) -> None:
        self._tokenizer, self._ids = tokenizer, ids

    def between(self, start: int, stop: int) -> str:
        """The text of tokens `start` to `stop`, whole characters only, as it is within the document."""
        # A token before is decoded along: decoders may join tokens, or drop a blank at the beginning.
        before = self._clean(start - 1, -1)
        return self._settled(before, stop)[len(self._settled(before, start)) :]

    def shortened(self, start: int, stop: int) -> str:
        """The same, of a long stretch the two ends."""
        if stop - start <= _WHOLE:
            return self.between(start, stop)
        gap = f" [... {stop - start - _HEAD - _TAIL:,} tokens ...] "
        return self.between(start, start + _HEAD) + gap + self.between(stop - _TAIL, stop)

    def _settled(self, start: int, stop: int) -> str:
        """The text without a last character whose other tokens follow."""
        text = self._decode(start, stop)
        if not text.endswith(_BROKEN) or stop == len(self._ids):
            return text
        further = self._decode(start, self._clean(stop, 1) + 1)
        # Some decoders give up whole runs of bytes for one that is missing, so the tokens in question are taken away.
        for end in range(stop, max(stop - _MOST_BYTES, start), -1):
            if further.startswith(text := self._decode(start, end)):
                return text
        return os.path.commonprefix([text, further])

    def _clean(self, place: int, step: int) -> int:
        """The nearest token, from `place` on, that is whole characters."""
        for near in range(place, place + step * _LOOK, step):
            if not 0 < near < len(self._ids) or _BROKEN not in self._decode(near, near + 1):
                return min(max(near, 0), len(self._ids))
        return place

    def _decode(self, start: int, stop: int) -> str:
        return self._tokenizer.decode(
            self._ids[start:stop], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )


def inert(text: str) -> str:
    """A text whose control characters are visible and do nothing; line ends and tabs stay."""
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    code = ord(character)
    category = unicodedata.category(character)
    if character in "\n\t" or character in _JOINERS or not category.startswith("C"):
        return character
    if code < 0x20:
        return chr(0x2400 + code)
    if category == "Cn" or 0xE000 <= code <= 0xF8FF:
        return character
    return "␡" if code == 0x7F else f"<U+{code:04X}>"


def preview(console: Console, stretches: Sequence[Piece]) -> Text:
    """One document: learnt text green, the rest dim; without colour the learnt text is in brackets."""
    coloured = console.color_system is not None and not console.no_color
    opening, closing = _marks(console)
    text = Text()
    for piece in stretches:
        shown = inert(piece.text)
        if coloured:
            text.append(shown, "green" if piece.learnt else "dim")
            continue
        for bracket in (OPEN, CLOSE):  # a row's own would look like ours
            shown = shown.replace(bracket, f"<U+{ord(bracket):04X}>")
        text.append(f"{opening}{shown}{closing}" if piece.learnt else shown)
    return text


def _marks(console: Console) -> tuple[str, str]:
    return (OPEN, CLOSE) if representable(OPEN + CLOSE, console.encoding) == OPEN + CLOSE else _PLAIN_MARKS


@dataclass(frozen=True)
class Packing:
    """What packing makes of documents: training rows, the share of their room in use, documents in a row."""

    length: int
    rows: int
    full: float
    documents_most: int
    documents_mean: float


def packing(documents: Documents, length: int) -> Packing | None:
    """Packing by best fit.

    Args:
        documents: tokenized rows.
        length: tokens of a training row.

    Returns:
        None where there are no documents, or one is longer than a row.
    """
    if not len(documents) or int(documents.lengths.max()) > length:
        return None
    rows = best_fit(documents.lengths, length)
    most = max(len(row) for row in rows)
    return Packing(length, len(rows), efficiency(rows, documents.lengths, length), most, len(documents) / len(rows))


def report_text(
    report: DataReport, documents: Documents, pack_length: int, *, blocks: bool, width: int = _WIDTH
) -> Iterator[str]:
    """The full report, a line at a time.

    Args:
        report: of the rows.
        documents: what they became.
        pack_length: length of packed rows; 0 takes the length limit.
        blocks: whether block characters can be shown.
        width: columns that the histogram may take.
    """
    yield f"source   {report.source}"
    yield f"format   {report.format} (data.format names another)"
    left_out = sum(found.count for found in report.skipped.values())
    yield (
        f"rows     {report.kept:,} of {report.rows:,} used, "
        + (f"{left_out:,} left out, " if left_out else "")
        + f"{report.documents:,} documents"
    )
    yield (
        f"tokens   {report.real_tokens:,}, {report.supervised_tokens:,} of them learnt ({report.supervised_share:.0%})"
    )
    if report.lengths:
        figures = ", ".join(f"{name} {_number(value)}" for name, value in report.lengths.items())
        yield f"lengths  {figures} tokens a row"
        yield from _histogram(report, blocks, width)
    yield from _too_long(report)
    yield from _packing(documents, pack_length, report.max_length)
    for line in [*report.content_lines(), *report.notes]:
        yield f"note     {line}"
    for reason, found in sorted(report.skipped.items(), key=lambda item: -item[1].count):
        yield f"left out {reason}: {_found(found)}"
    yield from (f"hint     {hint}" for hint in report.hints())


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def _found(found: Found) -> str:
    return f"{found.count:,} ({'' if found.count == 1 else 'first: '}{found.first})"


def _histogram(report: DataReport, blocks: bool, width: int) -> Iterator[str]:
    """Rows by length, with bounds that double; the limit is marked in the line it falls into."""
    most = max(count for _, count in report.histogram)
    longest_bound = f"{report.histogram[-1][0]:,}"
    mark = f"  <- max_length {report.max_length:,}"
    room = width - len(f"  up to {longest_bound}   {most:,}") - len(mark)
    bar_width = max(min(_BAR, room), 1)
    before = 0
    for bound, count in report.histogram:
        bar = ("█" if blocks else "#") * max(round(bar_width * count / most), count > 0)
        limit = mark if before < report.max_length <= bound else ""
        if count or limit:
            yield f"  up to {bound:>{len(longest_bound)},}  {bar} {count:,}{limit}"
        before = bound
    if report.max_length > before:
        yield f"  max_length {report.max_length:,} is above all of them"


def _too_long(report: DataReport) -> Iterator[str]:
    """What became of rows above the limit, and which limit would change that."""
    if report.too_long.count:
        done = {"cut": "cut at the end", "drop": "left out", "split": "split"}[report.too_long_policy]
        lost = f"; {report.lost_tokens:,} tokens are not trained on" if report.lost_tokens else ""
        yield f"too long rows of more than {report.max_length:,} tokens, {done}: {_found(report.too_long)}{lost}"
        longer = _longer_limits(report)
        if longer:
            yield f"too long with data.max_length {longer}"
    if report.unlearnt_pieces:
        yield f"too long pieces of split rows in which nothing is learnt, left out: {report.unlearnt_pieces:,}"


def _longer_limits(report: DataReport) -> str:
    """The next limit by doubling that helps, and the one that holds every row; empty where none is known."""
    longest = int(report.lengths.get("longest", 0))
    if longest <= report.max_length:  # the longest was clipped before it was measured
        return ""
    parts: list[str] = []
    above = sum(count for _, count in report.histogram)
    for bound, count in report.histogram:
        above -= count
        if report.max_length < bound < longest and above < report.too_long.count:
            parts.append(f"{bound:,}: {above:,}")
            break
    least = "at least " if longest > _MEASURED_WHOLE * report.max_length else ""
    return "; with ".join([*parts, f"{least}{longest:,}: none"])


def _packing(documents: Documents, pack_length: int, max_length: int) -> Iterator[str]:
    length = pack_length or max_length
    packed = packing(documents, length)
    if packed:
        asked = "" if pack_length else f"with data.pack_length {length:,}: "
        yield (
            f"packing  {asked}{packed.rows:,} rows of {length:,} tokens, {packed.full:.1%} full, "
            f"up to {packed.documents_most:,} documents a row (mean {packed.documents_mean:.1f})"
        )
    elif len(documents):
        yield (
            f"packing  training will refuse: a document has {int(documents.lengths.max()):,} tokens, data.pack_length "
            f"is {length:,}; set data.max_length to {length:,} at most, or raise data.pack_length"
        )


def show(
    console: Console, prepared: Prepared, source: RowSource, tokenizer: Any, *, rows: int, pack_length: int
) -> None:
    """Print report and preview.

    Args:
        console: from `hasten.report.console.make_console`.
        prepared: the rows' documents and report.
        source: the rows; it names them.
        tokenizer: the one that made the documents.
        rows: how many documents are shown.
        pack_length: see `report_text`.
    """
    documents = prepared.documents
    blocks = has_blocks(console)
    for line in report_text(prepared.report, documents, pack_length, blocks=blocks, width=console.width):
        _print_line(console, line)
    for note in source.notes:
        _print_line(console, f"note     {note}")
    for index in range(min(rows, len(documents))):
        stretches = pieces(documents, index, tokenizer, shorten=True)
        title = f"document {index + 1} ({source.place(int(documents.rows[index]))})"
        _print_document(console, title, int(documents.lengths[index]), int(documents.supervised[index]), stretches)


def show_unusable(console: Console, source: RowSource, tokenizer: Any, settings: DataSettings) -> None:
    """Print a row as it is rendered, with what would be learnt of it; nothing where none can be rendered.

    For rows of which none can be used, before the error says why.

    Args:
        console: from `hasten.report.console.make_console`.
        source: the rows; the first that can be rendered is shown.
        tokenizer: the model's.
        settings: with which they could not be used.
    """
    longest = max(settings.max_length, _LONGEST_SHOWN)
    wide = replace(settings, max_length=longest, too_long="cut", inserted_text="keep")
    unlearnt = replace(wide, loss_on="all")  # a row in which nothing is learnt is rendered only if all of it is
    for attempt in (wide, unlearnt):
        try:
            documents = prepare(source[:_TRIED], tokenizer, attempt).documents
        except DataError:
            continue
        ids, flags = documents.of(0)
        learnt = flags if attempt is wide else np.zeros_like(flags)
        stretches = _pieces(ids, learnt, tokenizer, True, settings.max_length)
        _print_document(console, source.place(int(documents.rows[0])), len(ids), int(learnt.sum()), stretches)
        return


def _print_document(console: Console, title: str, tokens: int, learnt: int, stretches: Sequence[Piece]) -> None:
    _print_line(console, "")
    _print_line(console, f"-- {title}: {tokens:,} tokens, {learnt:,} learnt")
    console.print(preview(console, stretches), soft_wrap=True)


def _print_line(console: Console, line: str) -> None:
    """One line; a terminal's width breaks it between words, a log has it whole."""
    shown = inert(line).replace("\n", "␊")
    if console.is_terminal and len(shown) > console.width:
        shown = textwrap.fill(
            shown, console.width, subsequent_indent=" " * _INDENT, break_long_words=False, break_on_hyphens=False
        )
    console.print(Text(shown), soft_wrap=True)
