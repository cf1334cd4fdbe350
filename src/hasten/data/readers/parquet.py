"""Parquet: read in order by row groups; by any place from a temporary file that the first such reading fills.

A row group is decoded as a whole, so jumping between groups would decode one for every row. Therefore the rows are
written down once, each by itself, and memory holds a few hundred of them at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hasten.data.readers.files import DataFile, Spool
from hasten.data.readers.text_lines import empty
from hasten.data.rows import BrokenRow, Row, RowSource
from hasten.errors import DataError

_TOGETHER = 512
_BUFFER = 1 << 20
"""Bytes of one column that are read together; by default it would be all of a row group's columns."""


class ParquetRows(RowSource):
    """The rows of a .parquet file.

    Args:
        file: what is read.

    Raises:
        DataError: it cannot be read, is no Parquet, has a column name twice, or no rows.
    """

    def __init__(self, file: DataFile) -> None:
        super().__init__(file.name)
        self._file = file
        self._spool: Spool | None = None
        with self._opened() as parquet:
            self._count: int = parquet.metadata.num_rows
            names = parquet.schema_arrow.names
        for name in names:
            if names.count(name) > 1:
                rule = "Every column has a name of its own."
                raise DataError(file.name, f"the column name '{name}' twice", rule, "Rename or remove one.")
        if not self._count:
            raise empty(file.name, "no rows")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_spool": None}

    def __len__(self) -> int:
        return self._count

    @property
    def jumps(self) -> bool:
        """No: the first row by its place has all of them written down."""
        return False

    def __iter__(self) -> Iterator[Row]:
        with self._opened() as parquet:
            for batch in parquet.iter_batches(batch_size=_TOGETHER):
                yield from _rows(batch)

    def _row(self, index: int) -> Row:
        if self._spool is None:
            self._spool = Spool(self)
        return self._spool[index]

    def _digest(self) -> str:
        return self._file.digest_as("Parquet")

    def close(self) -> None:
        """Let go of the file; the temporary one stays, for it was costly."""
        self._file.close()

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        with self._file.opened() as file:
            try:
                # A Python file, not a path: pyarrow takes no path that is not UTF-8 (an ASCII locale's `ä`).
                yield ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER)
            except ArrowException as cause:
                value = f"it is not Parquet ({' '.join(str(cause).split())})"
                raise DataError(self.name, value, "A .parquet file is Apache Parquet.", "Write it again.") from cause


def _rows(batch: Any) -> list[Row]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        if len(batch) == 1:
            return [BrokenRow("text that is not UTF-8")]
        return [row for index in range(len(batch)) for row in _rows(batch.slice(index, 1))]
