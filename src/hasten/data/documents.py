"""Tokenized documents: flat arrays instead of millions of Python numbers.

    ids      int32   a a a a | b b b | c ...        all documents end to end
    learnt   bool    0 0 1 1 | 0 1 1 | 0 ...        which of them are learnt
    ends     int64           4       7  ...         where each document ends

In memory, or in files of bare values that are memory-mapped, so that a data set may be larger than memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, cast, overload

import numpy as np
from numpy.typing import NDArray

from hasten.data.packing import IGNORED, Example

Ids = NDArray[np.int32]
Flags = NDArray[np.bool_]
Counts = NDArray[np.int64]
_KINDS: dict[str, Any] = {
    "ids": np.int32,
    "learnt": np.bool_,
    "ends": np.int64,
    "supervised": np.int64,
    "rows": np.int64,
}


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
        """Memory-mapped from a folder that `DocumentsWriter` wrote.

        Raises:
            OSError: a file is missing or cannot be read.
            ValueError: the files do not belong together, or one was cut off.
        """
        made = cls(*(_mapped(folder / f"{name}.bin", kind) for name, kind in _KINDS.items()))
        tokens = int(made.ends[-1]) if len(made) else 0
        if not (len(made.ids) == len(made.learnt) == tokens and len(made) == len(made.supervised) == len(made.rows)):
            raise ValueError(f"{folder} holds {len(made)} documents of {tokens} tokens, but not all of them")
        return made


class DocumentsWriter:
    """Takes documents as they are made: into memory, or to a folder, so that they never need to fit into memory.

    Args:
        folder: where the arrays are written; None keeps them in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._files: dict[str, BinaryIO] = {
            name: BytesIO() if folder is None else (folder / f"{name}.bin").open("wb") for name in _KINDS
        }
        self._tokens = 0

    def __enter__(self) -> DocumentsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:  # what is in memory is the documents' own
            for file in self._files.values():
                file.close()

    def add(self, ids: Ids, learnt: Flags, row: int) -> None:
        """Take one document."""
        self._tokens += len(ids)
        values = (ids, learnt, self._tokens, np.count_nonzero(learnt), row)
        for (name, kind), value in zip(_KINDS.items(), values, strict=True):
            self._files[name].write(np.asarray(value, kind).tobytes())

    def finish(self) -> Documents:
        """All documents."""
        if self._folder is not None:
            for file in self._files.values():
                file.flush()
            return Documents.load(self._folder)
        buffers = {name: cast(BytesIO, file).getbuffer() for name, file in self._files.items()}
        arrays: list[Any] = [np.frombuffer(buffers[name], kind) for name, kind in _KINDS.items()]
        return Documents(*arrays)


def _mapped(file: Path, kind: Any) -> Any:
    # Nothing cannot be mapped.
    return np.memmap(file, kind, mode="r") if file.stat().st_size else np.zeros(0, kind)
