"""What rows became, for people: the full report, a histogram of lengths, and rows with the learnt text marked.

Row text comes from anywhere, so it is printed inertly: no markup, and control characters as symbols. On a terminal the
learnt text is green and the rest dim; without colour it stands in ⟦brackets⟧, so a mask can be read in a log too.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from hasten.data.bins import best_fit, efficiency
from hasten.data.documents import Documents
from hasten.data.report import DataReport
from hasten.report.console import has_blocks

OPEN, CLOSE = "⟦", "⟧"
_HEAD, _TAIL = 280, 160
"""Characters shown at the beginning and the end of a longer piece."""
_BAR = 40
_BROKEN = "\ufffd"


@dataclass(frozen=True)
class Piece:
    """A stretch of a document that is learnt, or is not."""

    text: str
    learnt: bool


def pieces(documents: Documents, index: int, tokenizer: Any) -> list[Piece]:
    """A document's text in stretches of learnt and other tokens.

    Args:
        documents: tokenized rows.
        index: which of them.
        tokenizer: the one that made them.
    """
    ids, learnt = documents.of(index)
    borders = [0, *((learnt[1:] != learnt[:-1]).nonzero()[0] + 1).tolist(), len(ids)]
    made: list[Piece] = []
    shown = ""
    for start, stop in zip(borders, borders[1:], strict=False):
        # The beginning is decoded anew for each border: a decoder may join tokens, and a character may be several.
        text = tokenizer.decode(ids[:stop].tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        whole = text if stop == len(ids) else text.rstrip(_BROKEN)
        made.append(Piece(whole[len(shown) :], bool(learnt[start])))
        shown = whole
    return made


def inert(text: str) -> str:
    """A text whose control characters are visible and do nothing; line ends and tabs stay."""
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    code = ord(character)
    if character in "\n\t" or not unicodedata.category(character).startswith("C"):
        return character
    if code < 0x20:
        return chr(0x2400 + code)
    if unicodedata.category(character) == "Cn" or 0xE000 <= code <= 0xF8FF:
        return character
    return "␡" if code == 0x7F else f"<U+{code:04X}>"


def preview(console: Console, stretch: Sequence[Piece]) -> Text:
    """One document: learnt text green (or in brackets), the rest dim; long stretches lose their middle."""
    coloured = console.color_system is not None and not console.no_color
    text = Text()
    for piece in stretch:
        shown = inert(_shortened(piece.text))
        if coloured:
            text.append(shown, "green" if piece.learnt else "dim")
        else:
            text.append(f"{OPEN}{shown}{CLOSE}" if piece.learnt else shown)
    return text


def _shortened(text: str) -> str:
    if len(text) <= _HEAD + _TAIL + 40:
        return text
    return f"{text[:_HEAD]} [... {len(text) - _HEAD - _TAIL:,} characters ...] {text[-_TAIL:]}"


def report_text(report: DataReport, documents: Documents, pack_length: int, *, blocks: bool) -> Iterator[str]:
    """The full report, a line at a time.

    Args:
        report: of the rows.
        documents: what they became.
        pack_length: length of packed rows; 0 takes the length limit.
        blocks: whether block characters can be shown.
    """
    yield f"source   {report.source}"
    yield f"format   {report.format} (data.format names another)"
    yield f"rows     {report.kept:,} of {report.rows:,} used, {report.documents:,} documents"
    yield (
        f"tokens   {report.real_tokens:,}, {report.supervised_tokens:,} of them learnt ({report.supervised_share:.0%})"
    )
    if report.lengths:
        figures = ", ".join(f"{name} {value:,g}" for name, value in report.lengths.items())
        yield f"lengths  {figures} tokens a row"
        yield from _histogram(report, blocks)
    yield from _packing(report, documents, pack_length)
    for line in [*report.length_lines(), *report.content_lines(), *report.notes]:
        yield f"note     {line}"
    for reason, found in sorted(report.skipped.items(), key=lambda item: -item[1].count):
        yield f"left out {reason}: {found}"
    yield from (f"hint     {hint}" for hint in report.hints())


def _histogram(report: DataReport, blocks: bool) -> Iterator[str]:
    most = max(count for _, count in report.histogram)
    width = len(f"{report.histogram[-1][0]:,}")
    before = 0
    for bound, count in report.histogram:
        bar = ("█" if blocks else "#") * max(round(_BAR * count / most), count > 0)
        limit = f"  <- data.max_length {report.max_length:,}" if before < report.max_length <= bound else ""
        if count or limit:
            yield f"  up to {bound:>{width},}  {bar} {count:,}{limit}"
        before = bound


def _packing(report: DataReport, documents: Documents, pack_length: int) -> Iterator[str]:
    length = pack_length or report.max_length
    if not len(documents) or int(documents.lengths.max()) > length:
        return
    rows = best_fit(documents.lengths, length)
    full = efficiency(rows, documents.lengths, length)
    yield (
        f"packing  {len(rows):,} rows of {length:,} tokens, {full:.1%} full, "
        f"{len(documents) / len(rows):.1f} documents in each"
    )


def show(
    console: Console, report: DataReport, documents: Documents, tokenizer: Any, rows: int, pack_length: int
) -> None:
    """Print report and preview.

    Args:
        console: from `hasten.report.console.make_console`.
        report: of the rows.
        documents: what they became.
        tokenizer: the one that made them.
        rows: how many documents are shown.
        pack_length: see `report_text`.
    """
    for line in report_text(report, documents, pack_length, blocks=has_blocks(console)):
        console.print(Text(inert(line)), soft_wrap=True)
    for index in range(min(rows, len(documents))):
        stretch = pieces(documents, index, tokenizer)
        count, learnt = int(documents.lengths[index]), int(documents.supervised[index])
        console.print(
            f"\n-- document {index + 1}: {count:,} tokens, {learnt:,} learnt", highlight=False, soft_wrap=True
        )
        console.print(preview(console, stretch), soft_wrap=True)
