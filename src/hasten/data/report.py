"""What was found in the rows: kept in the run record, printed in the run header, shown by `hasten data`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MOST_REASONS = 8
_FOUND = ("too_long", "spelled", "straddling", "calls_as_text", "tools_as_text", "missing_turns", "endless")


@dataclass
class Found:
    """How many rows, and the first of them."""

    count: int = 0
    first: str = ""
    """Where the first one stands, in the words of its source; see `DataReport.place`."""
    row: int = -1
    """The index of the first one."""

    def add(self, row: int) -> None:
        """One more."""
        self.row = row if self.row < 0 else min(self.row, row)
        self.count += 1

    def __str__(self) -> str:
        return f"{self.count:,} ({'' if self.count == 1 else 'first: '}{self.first})"


@dataclass(kw_only=True)
class DataReport:
    """Facts about prepared rows; counts are of rows unless they say tokens or documents."""

    source: str
    format: str
    rows: int
    max_length: int
    too_long_policy: str
    kept: int = 0
    documents: int = 0
    real_tokens: int = 0
    supervised_tokens: int = 0
    skipped: dict[str, Found] = field(default_factory=dict)
    too_long: Found = field(default_factory=Found)
    clipped: int = 0
    """Rows so much longer than the limit that they were shortened before they were tokenized."""
    lost_tokens: int = 0
    """Tokens of cut rows that are not trained on; of clipped rows only those that were tokenized."""
    unlearnt_pieces: int = 0
    """Documents that splitting made and in which nothing is learnt; they are left out."""
    duplicates: int = 0
    spelled: Found = field(default_factory=Found)
    spelled_as: str = "text"
    straddling: Found = field(default_factory=Found)
    ended: int = 0
    calls_as_text: Found = field(default_factory=Found)
    tools_as_text: Found = field(default_factory=Found)
    missing_turns: Found = field(default_factory=Found)
    endless: Found = field(default_factory=Found)
    """Rows whose last answer has no end of turn in the template's text."""
    unseen: str = ""
    inserted: str = ""
    inserted_rows: int = 0
    day: str = ""
    lengths: dict[str, float] = field(default_factory=dict)
    """Tokens of a row before the limit: shortest, mean, median, p95, longest."""
    histogram: list[tuple[int, int]] = field(default_factory=list)
    """(upper bound in tokens, rows) with bounds that double."""
    notes: list[str] = field(default_factory=list)

    def place(self, source: str, place: Callable[[int], str]) -> None:
        """Name the source and the first rows: kept reports know rows by their index, their file may be renamed.

        Args:
            source: its name.
            place: the index of a row -> where it stands.
        """
        self.source = source
        for found in (*(getattr(self, name) for name in _FOUND), *self.skipped.values()):
            found.first = place(found.row) if found.count else ""

    def measure(self, lengths: NDArray[np.int64]) -> None:
        """Take the lengths of all rows in which there is something to learn, before the limit."""
        if not len(lengths):
            return
        self.lengths = {
            "shortest": int(lengths.min()),
            "mean": round(float(lengths.mean()), 1),
            "median": int(np.median(lengths)),
            "p95": int(np.percentile(lengths, 95)),
            "longest": int(lengths.max()),
        }
        bounds = 2 ** np.arange(3, int(np.ceil(np.log2(max(lengths.max(), 8)))) + 1)
        counts = np.diff(np.searchsorted(np.sort(lengths), bounds, side="right"), prepend=0)
        self.histogram = [(int(bound), int(count)) for bound, count in zip(bounds, counts, strict=True)]

    @property
    def supervised_share(self) -> float:
        """Learnt tokens of all."""
        return self.supervised_tokens / self.real_tokens if self.real_tokens else 0.0

    def lines(self) -> list[str]:
        """What was found and what was done, one sentence a line, nothing that did not happen."""
        head = (
            f"{self.kept:,} of {self.rows:,} rows ({self.format}), {self.real_tokens:,} tokens, "
            f"{self.supervised_tokens:,} of them learnt ({self.supervised_share:.0%})"
        )
        return [head, *self.length_lines(), *self.content_lines(), *self.notes, *self._skipped_lines(), *self.hints()]

    def length_lines(self) -> list[str]:
        """What was done about rows that are too long."""
        lines = []
        if self.too_long.count and self.too_long_policy != "drop":  # those are among the rows left out
            done = {"cut": "cut at the end", "split": "split"}[self.too_long_policy]
            least = "at least " if self.clipped else ""
            lost = f"; {least}{self.lost_tokens:,} tokens are not trained on" if self.lost_tokens else ""
            lines.append(f"longer than {self.max_length:,} tokens and {done}: {self.too_long}{lost}")
        if self.unlearnt_pieces:
            lines.append(f"pieces of split rows in which nothing is learnt, left out: {self.unlearnt_pieces:,}")
        return lines

    def content_lines(self) -> list[str]:
        """What is to be known of the content and the template."""
        spelled = "kept as text" if self.spelled_as == "text" else "they act, as asked for"
        facts = [
            (self.inserted, f"the template writes text of its own in {self.inserted_rows:,} rows: {self.inserted!r}"),
            (self.day, f"the template prints the date: {self.day} in all rows"),
            (self.unseen, f"answers are asked for with {self.unseen!r}, which no row has"),
            (self.spelled.count, f"control tokens of the model spelled in rows, {spelled}: {self.spelled}"),
            (self.straddling.count, f"a learnt token also holds the end of what is only read: {self.straddling}"),
            (self.ended, f"end token added to the text: {self.ended:,}"),
            (self.calls_as_text.count, f"tool calls, which the template lacks, written as text: {self.calls_as_text}"),
            (self.tools_as_text.count, f"tools, which the template lacks, listed as text: {self.tools_as_text}"),
            (
                self.missing_turns.count,
                f"turns, or words beside calls, that the template leaves out: {self.missing_turns}",
            ),
            (
                self.endless.count,
                f"the template writes no end behind the last answer, so stopping is not learnt there: {self.endless}",
            ),
            (self.duplicates, f"rows that are the same as an earlier one: {self.duplicates:,}"),
        ]
        return [line for found, line in facts if found]

    def _skipped_lines(self) -> list[str]:
        reasons = sorted(self.skipped.items(), key=lambda item: -item[1].count)
        lines = [f"left out, {reason}: {found}" for reason, found in reasons[:_MOST_REASONS]]
        if others := reasons[_MOST_REASONS:]:
            lines.append(f"left out for {len(others)} other reasons: {sum(found.count for _, found in others):,}")
        return lines

    def hints(self) -> list[str]:
        """What may help with rows that were left out."""
        if not any("refuses the turns" in reason for reason in self.skipped):
            return []
        return [
            "data.merge_turns joins neighbouring turns of one role, data.fold_system puts the system turn into the "
            "first question: for templates that insist on alternation or have no system turn"
        ]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the run record and ``--json``."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DataReport:
        """The report that `as_dict` wrote."""
        made = dict(values)
        for name in _FOUND:
            made[name] = Found(**made[name])
        made["skipped"] = {reason: Found(**found) for reason, found in made["skipped"].items()}
        made["histogram"] = [(int(bound), int(count)) for bound, count in made["histogram"]]
        return cls(**made)
