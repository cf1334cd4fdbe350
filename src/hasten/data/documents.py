"""Tokenized documents: two flat arrays instead of millions of Python numbers.

    ids      int32   a a a a | b b b | c ...        all documents end to end
    learnt   bool    0 0 1 1 | 0 1 1 | 0 ...        which of them are learnt
    ends     int64           4       7  ...         where each document ends

In memory, or memory-mapped from the cache so that a data set may be larger than memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast, overload

import numpy as np
from numpy.typing import NDArray

from hasten.data.packing import IGNORED, Example

Ids = NDArray[np.int32]
Flags = NDArray[np.bool_]
Counts = NDArray[np.int64]
_FILES = ("ids", "learnt", "ends", "supervised", "rows")


class Documents(Sequence[Example]):
    """Tokenized documents.

    Args:
        ids: int32 ``[tokens]``.
        learnt: bool ``[tokens]``; the first token of a document never is: nothing predicts it.
        ends: int64 ``[documents]``.
        supervised: int64 ``[documents]``: how many tokens of each are learnt.
        rows: int64 ``[documents]``: the index of the row that each document came from.

    Attributes:
        lengths: int64 ``[documents]``, tokens.
    """

    def __init__(self, ids: Ids, learnt: Flags, ends: Counts, supervised: Counts, rows: Counts) -> None:
        self.ids, self.learnt, self.ends, self.supervised, self.rows = ids, learnt, ends, supervised, rows
        self.starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]]) if len(ends) else ends
        self.lengths = ends - self.starts

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Any:
        """One document: int32 `input_ids` and `labels`."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        ids, learnt = self.of(index)
        return {"input_ids": ids, "labels": np.where(learnt, ids, np.int32(IGNORED))}

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    def of(self, index: int) -> tuple[Ids, Flags]:
        """A document's ids and which of them are learnt."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        start, end = int(self.starts[index]), int(self.ends[index])
        return self.ids[start:end], self.learnt[start:end]

    @classmethod
    def load(cls, folder: Path) -> Documents:
        """Memory-mapped from a folder that `DocumentsWriter` wrote."""
        arrays = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in _FILES]
        return cls(*cast("tuple[Any, Any, Any, Any, Any]", tuple(arrays)))


class DocumentsWriter:
    """Takes documents as they are made: into memory, or to a folder, so that they never need to fit into memory.

    Args:
        folder: where the arrays are written; None keeps them in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._counts: dict[str, list[int]] = {"ends": [], "supervised": [], "rows": []}
        self._tokens = 0
        self._parts: dict[str, list[NDArray[Any]]] = {"ids": [], "learnt": []}
        self._files = {name: (folder / f"{name}.raw").open("wb") for name in self._parts} if folder else {}

    def add(self, ids: Ids, learnt: Flags, row: int) -> None:
        """Take one document."""
        self._tokens += len(ids)
        for name, number in (("ends", self._tokens), ("supervised", int(learnt.sum())), ("rows", row)):
            self._counts[name].append(number)
        for name, values in (("ids", ids), ("learnt", learnt)):
            if self._files:
                self._files[name].write(values.tobytes())
            else:
                self._parts[name].append(values)

    def finish(self) -> Documents:
        """All documents."""
        counts = {name: np.array(numbers, np.int64) for name, numbers in self._counts.items()}
        if self._folder is None:
            empty = {"ids": np.zeros(0, np.int32), "learnt": np.zeros(0, np.bool_)}
            joined = {name: np.concatenate([empty[name], *parts]) for name, parts in self._parts.items()}
            return Documents(joined["ids"], joined["learnt"], **counts)
        for name, kind in (("ids", np.int32), ("learnt", np.bool_)):
            self._files[name].close()
            _add_header(self._folder / f"{name}.raw", self._folder / f"{name}.npy", kind, self._tokens)
        for name, numbers in counts.items():
            np.save(self._folder / f"{name}.npy", numbers)
        return Documents.load(self._folder)


def _add_header(raw: Path, target: Path, kind: Any, count: int) -> None:
    """Raw values become an .npy file, a block at a time."""
    import shutil

    with target.open("wb") as out, raw.open("rb") as values:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(kind)), "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(out, header)
        shutil.copyfileobj(values, out, 1 << 20)
    raw.unlink()
