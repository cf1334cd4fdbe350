"""What every source of rows looks like: a sequence whose rows are read when they are asked for.

A file may be larger than memory, so nothing here holds rows that it was not given: a source knows how many it has and
where they are. Views (`Selection`, `Mixture`) hold numbers only. Every row keeps its place, "b.jsonl row 7", whatever
order it is read in, because messages name rows by it.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import random
from abc import abstractmethod
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate, compress
from typing import Any, overload

from hasten.errors import DataError

Row = dict[str, Any]

_MOST_OPEN = 64
"""Sources of a mixture that keep their files open: a folder may have thousands, a process may not."""
_MOST_NAMED = 3


class BrokenRow(dict[str, Any]):
    """An empty row in the place of one that cannot be used.

    Args:
        reason: why, in the words of a report: ``duplicate key 'text'``.
    """

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason


class RowSource(Sequence[Row]):
    """Rows that are read when they are asked for.

    Args:
        name: what messages call the source, as the user wrote it.
        notes: sentences for the run header.
    """

    def __init__(self, name: str, notes: Iterable[str] = ()) -> None:
        self.name = name
        self.notes = list(notes)

    @property
    def jumps(self) -> bool:
        """Whether some rows by their places cost less than all in order."""
        return True

    @property
    def origins(self) -> list[RowSource]:
        """The whole sources that rows come from, each with rows of one format."""
        return [self]

    @abstractmethod
    def _row(self, index: int) -> Row:
        """Row `index`, which is neither negative nor too large."""

    @abstractmethod
    def _digest(self) -> str:
        """The fingerprint, computed."""

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Selection: ...
    def __getitem__(self, index: int | slice) -> Row | Selection:
        if isinstance(index, slice):
            return Selection(self, range(len(self))[index])
        return self._row(range(len(self))[index])

    def __iter__(self) -> Iterator[Row]:
        return map(self._row, range(len(self)))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the content: alike in every process, whatever the file is called and however old it is."""
        return self._digest()

    def place(self, index: int) -> str:
        """Where a row stands, in the words of a message.

        Args:
            index: its index here, from 0.
        """
        return f"row {index + 1}"

    def close(self) -> None:
        """Let go of open files; reading opens them again."""


class ListRows(RowSource):
    """Rows that are in memory.

    Args:
        rows: they are not copied.
        name: what messages call them.
        notes: sentences for the run header.
    """

    def __init__(self, rows: list[Row], name: str = "rows", notes: Iterable[str] = ()) -> None:
        super().__init__(name, notes)
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    def _row(self, index: int) -> Row:
        return self._rows[index]

    def _digest(self) -> str:
        return digest_of(self)


class Selection(RowSource):
    """Some rows of a source, in an order of their own and with the places they have there.

    Args:
        source: where the rows are.
        indices: their indices in it, from 0.
    """

    def __init__(self, source: RowSource, indices: Iterable[int]) -> None:
        super().__init__(source.name, source.notes)
        self.source = source
        self.indices: Sequence[int] = indices if isinstance(indices, range) else array("q", indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Row]:
        import numpy as np

        indices = np.asarray(self.indices)
        few = not len(indices) or (self.source.jumps and 2 * len(indices) < indices[-1])
        if few or (indices[1:] <= indices[:-1]).any():
            return map(self.source._row, self.indices)
        # In order, most files are read faster, also past some rows that are not wanted.
        wanted = np.zeros(int(indices[-1]) + 1, np.bool_)
        wanted[indices] = True
        return compress(self.source, wanted.tolist())

    @property
    def jumps(self) -> bool:
        """As the source."""
        return self.source.jumps

    @property
    def origins(self) -> list[RowSource]:
        """Those of the source."""
        return self.source.origins

    def _row(self, index: int) -> Row:
        return self.source[self.indices[index]]

    def _digest(self) -> str:
        return text_digest("selection", self.source.fingerprint, hashlib.sha256(array("q", self.indices)).hexdigest())

    def place(self, index: int) -> str:
        """As the source names it."""
        return self.source.place(self.indices[index])

    def close(self) -> None:
        """Let go of the source's open files."""
        self.source.close()


class Mixture(RowSource):
    """Several sources as one.

    Without weights all rows of each follow one another. With weights every source has its share of the rows, in the
    whole and in every beginning of it: row j of the n of a source stands at (j + 1/2) / n of the way. As many rows are
    used as there can be without using one twice, so at least one source is used up; of the others, the seed chooses.

    Args:
        sources: at least one; none is empty.
        weights: positive shares in their order, or none.
        seed: chooses the rows of a weighted mixture.
        name: what messages call the mixture; by default its sources' names.
        alike: whether the rows of all sources have one format, as the files of a folder do.
    """

    def __init__(
        self,
        sources: Sequence[RowSource],
        weights: Sequence[float] = (),
        seed: int = 0,
        name: str = "",
        alike: bool = False,
    ) -> None:
        super().__init__(name or _listed([source.name for source in sources]))
        self._alike = alike
        self.sources = list(sources)
        self._open: set[int] = set()
        self._opened: deque[int] = deque()  # the same, in their order
        self._seed = seed
        sizes = [len(source) for source in sources]
        self._counts = _shares(sizes, weights) if weights else sizes
        self._stops = list(accumulate(self._counts))
        self._parts, self._indices = _interleaved(sizes, self._counts, seed) if weights else (None, None)
        for source in sources:
            self.notes += source.notes
        if weights:
            used = zip(self._counts, sources, strict=True)
            self.notes.append(
                "mixed: " + ", ".join(f"{count} of {len(part)} rows of {part.name}" for count, part in used)
            )

    def __len__(self) -> int:
        return self._stops[-1]

    def __iter__(self) -> Iterator[Row]:
        if self._parts is not None:
            yield from super().__iter__()
            return
        for source in self.sources:
            yield from source
            source.close()

    @property
    def jumps(self) -> bool:
        """As all of the sources; those of a weighted mixture are never read in order."""
        return self._parts is not None or all(source.jumps for source in self.sources)

    @property
    def origins(self) -> list[RowSource]:
        """Those of the sources, unless they have one format."""
        return [self] if self._alike else [origin for source in self.sources for origin in source.origins]

    def _find(self, index: int) -> tuple[int, int]:
        """Which source a row is of, and its index there."""
        if self._parts is not None and self._indices is not None:
            return self._parts[index], self._indices[index]
        part = bisect_right(self._stops, index)
        return part, index - self._stops[part] + self._counts[part]

    def _row(self, index: int) -> Row:
        part, own = self._find(index)
        if part not in self._open:
            # Several threads may come here: each of these steps is safe by itself, and a part may be noted twice.
            self._open.add(part)
            self._opened.append(part)
            if len(self._opened) > _MOST_OPEN:
                oldest = self._opened.popleft()
                self._open.discard(oldest)
                self.sources[oldest].close()
        return self.sources[part]._row(own)

    def _digest(self) -> str:
        choice = "all" if self._parts is None else f"{self._counts} {self._seed}"
        return text_digest("mixture", choice, *(source.fingerprint for source in self.sources))

    def place(self, index: int) -> str:
        """With the name of the source: "b.jsonl row 7"."""
        part, own = self._find(index)
        source = self.sources[part]
        return source.place(own) if isinstance(source, Mixture) else f"{source.name} {source.place(own)}"

    def close(self) -> None:
        """Let go of all open files."""
        for source in self.sources:
            source.close()
        self._open.clear()
        self._opened.clear()


def digest_of(rows: Iterable[Row]) -> str:
    """SHA-256 (hex) over rows, in their order and with their keys in theirs.

    Raises:
        DataError: a row holds something that has no lasting form, such as a function; the row is named.
    """
    digest = hashlib.sha256()
    for number, row in enumerate(rows, 1):
        try:
            digest.update(json.dumps(row, default=_pickled).encode() + b"\n")
        except (TypeError, ValueError, AttributeError, RecursionError, pickle.PicklingError) as cause:
            raise DataError(
                f"row {number}",
                f"a value that cannot be stored ({cause})",
                "Rows hold text, numbers, lists and mappings with text as keys.",
                "Turn it into one of them, or leave the column out.",
            ) from cause
    return digest.hexdigest()


def _pickled(value: object) -> list[str]:
    """Times, bytes, arrays: not by `repr`, which shortens, and shows addresses."""
    return [type(value).__qualname__, pickle.dumps(value, protocol=4).hex()]


def text_digest(*lines: str) -> str:
    """SHA-256 (hex) of lines of text."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _shares(sizes: Sequence[int], weights: Sequence[float]) -> list[int]:
    """How many rows of each source: in the ratio of the weights, and all of the one that is used up first."""
    total = min(size / weight for size, weight in zip(sizes, weights, strict=True))
    return [min(size, round(total * weight)) for size, weight in zip(sizes, weights, strict=True)]


def _interleaved(sizes: Sequence[int], counts: Sequence[int], seed: int) -> tuple[array[int], array[int]]:
    """For each row of a weighted mixture, the source it is of and its index there."""
    import numpy as np

    chosen = []
    for number, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        indices = array("q", range(size))
        random.Random(f"{seed} {number}").shuffle(indices)
        chosen.append(np.asarray(indices[:count], dtype=np.int64))
    places = np.concatenate([(np.arange(count) + 0.5) / max(count, 1) for count in counts])
    order = np.argsort(places, kind="stable")
    parts = np.repeat(np.arange(len(counts)), counts)[order]
    return array("q", parts.astype(np.int64).tobytes()), array("q", np.concatenate(chosen)[order].tobytes())
