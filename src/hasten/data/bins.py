"""Documents into training rows of a fixed length, with hardly any room left over: best-fit decreasing.

The longest document goes first; each goes into the row with the least room that still holds it, or opens a new one.
No document is cut, and real data fills such rows to more than 99 %. Source: "Fewer Truncations Improve Language
Modeling" (Ding et al. 2024), section 3; written from its description.

    lengths 5 4 3 3 2 1, capacity 6    ->    5 1 | 4 2 | 3 3

Documents of one length behave alike, so they are placed together: a row with room r takes r // length of them before
the next row is looked at, which is what one by one gives too (a row that has just been used and still holds another has
less room than any other that does). The cost is a search among the different rooms, at most `capacity`, per visit.

Rows come out with the longest documents first. Whoever trains on them shuffles them: `hasten.training.steps` does.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hasten.data.packing import Example, lengths_of
from hasten.errors import ConfigError, DataError


def best_fit(lengths: Sequence[int] | npt.NDArray[np.integer], capacity: int) -> list[list[int]]:
    """Documents into as few rows as best-fit decreasing finds (never more than 11/9 of the fewest, plus one).

    Args:
        lengths: tokens of each document, 1 to `capacity`.
        capacity: tokens that a row holds.

    Returns:
        For each row the indices of its documents, longest first; every index exactly once. The same lengths give the
        same rows.

    Raises:
        DataError: a document is empty or does not fit into a row.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    _require_fitting(sizes, capacity)
    by_length = np.argsort(-sizes, kind="stable").tolist()
    values, counts = np.unique(sizes, return_counts=True)
    rows: list[list[int]] = []
    rooms = _Rooms()
    begin = 0
    for length, count in zip(values[::-1].tolist(), counts[::-1].tolist(), strict=True):
        end = begin + count
        while begin < end:
            room = rooms.least(length)
            if room is None:
                row, room = len(rows), capacity
                rows.append([])
            else:
                row = rooms.take(room)
            placed = by_length[begin : min(begin + room // length, end)]
            rows[row].extend(placed)
            begin += len(placed)
            rooms.put(room - length * len(placed), row)
    return rows


def packs(documents: Sequence[Example], pack_length: int) -> list[list[int]]:
    """Training rows of several documents each.

    Args:
        documents: none longer than `pack_length`.
        pack_length: tokens that a row holds, `data.pack_length`.

    Returns:
        For each row the indices of its documents.

    Raises:
        ConfigError: a document is longer than a row.
    """
    lengths = lengths_of(documents)
    if len(lengths) and (longest := int(lengths.max())) > pack_length:
        raise ConfigError(
            "data.pack_length",
            f"{pack_length}, but document {int(lengths.argmax())} has {longest} tokens",
            "A document is not divided between training rows.",
            f"Raise it to {longest}, or set data.max_length to {pack_length} at most.",
        )
    return best_fit(lengths, pack_length)


def efficiency(rows: Sequence[Sequence[int]], lengths: Sequence[int] | npt.NDArray[np.integer], capacity: int) -> float:
    """The share of the rows' room that holds tokens, 0 to 1 (1 where there are no rows)."""
    sizes = np.asarray(lengths, dtype=np.int64)
    used = sum(int(sizes[list(row)].sum()) for row in rows)
    return used / (len(rows) * capacity) if rows else 1.0


class _Rooms:
    """Rows by the room they have left."""

    def __init__(self) -> None:
        self.rows: dict[int, list[int]] = {}
        self.ascending: list[int] = []  # the keys of `rows`

    def least(self, length: int) -> int | None:
        """The least room that holds a document of this length."""
        place = bisect_left(self.ascending, length)
        return self.ascending[place] if place < len(self.ascending) else None

    def take(self, room: int) -> int:
        """A row with exactly this room, which then has none here."""
        rows = self.rows[room]
        row = rows.pop()
        if not rows:
            del self.rows[room]
            self.ascending.pop(bisect_left(self.ascending, room))
        return row

    def put(self, room: int, row: int) -> None:
        """A row with room left; a full one is forgotten."""
        if not room:
            return
        if room not in self.rows:
            self.rows[room] = []
            insort(self.ascending, room)
        self.rows[room].append(row)


def _require_fitting(sizes: npt.NDArray[np.int64], capacity: int) -> None:
    wrong = np.flatnonzero((sizes < 1) | (sizes > capacity))
    if len(wrong):
        raise DataError(
            f"document {int(wrong[0])}",
            f"{int(sizes[wrong[0]])} tokens, as one of {len(wrong)} of {len(sizes)} documents",
            f"A row holds documents of 1 to {capacity} tokens.",
            "Leave out empty documents; cut or split the longer ones.",
        )
