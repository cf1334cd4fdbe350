"""CSV and TSV: one look through the file notes where every record begins and ends; records are parsed when asked for.

A record may be longer than a line, and where it ends depends on its quotes, so the look is done by the `csv` module's
own parser, strictly. The first record names the columns. All values are text; none is guessed to be a number.
"""

from __future__ import annotations

import csv
import threading
from array import array
from collections.abc import Iterator
from contextlib import contextmanager

from hasten.data.readers.files import DataFile
from hasten.data.readers.text_lines import decoded, empty, lines
from hasten.data.rows import BrokenRow, Row, RowSource
from hasten.errors import DataError

_DELIMITERS = {",": "','", ";": "';'", "\t": "a tab"}
_LONGEST = 1 << 26
"""Characters in one field. The module's own limit of 128 KiB is less than a long document has; without any, a quote
that is never closed would take the rest of the file into memory."""
_TOGETHER = 256
_limit = threading.Lock()


class CsvRows(RowSource):
    """The rows of a .csv or .tsv file.

    Args:
        file: what is read.
        delimiter: between fields; empty: the one of comma, semicolon and tab that divides the first record most.

    Raises:
        DataError: the file cannot be read, is not UTF-8, has no columns or no rows, or a quote is never closed.
    """

    def __init__(self, file: DataFile, delimiter: str = "") -> None:
        super().__init__(file.name)
        self._file = file
        self._delimiter = delimiter or _delimiter(file)
        if self._delimiter != "," and not delimiter:
            self.notes.append(f"fields of {file.name} are separated by {_DELIMITERS[self._delimiter]}")
        self._columns: list[str] = []
        self._starts, self._stops = array("Q"), array("Q")
        with _long_fields():
            for start, stop, record in _records(file, self._delimiter):
                if not self._columns:
                    self._columns = _header(file.name, record)
                elif not self._is_blank(record):
                    self._starts.append(start)
                    self._stops.append(stop)
        if not self._columns:
            raise empty(file.name)
        if not self._starts:
            raise empty(file.name, "column names without rows")
        if nameless := self._columns.count(""):
            self.notes.append(f"columns of {file.name} without a name, which are not read: {nameless}")

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[Row]:
        for first in range(0, len(self), _TOGETHER):
            yield from self._parsed(range(first, min(first + _TOGETHER, len(self))))

    def _row(self, index: int) -> Row:
        return self._parsed(range(index, index + 1))[0]

    def _parsed(self, indices: range) -> list[Row]:
        """Neighbouring rows, read together."""
        begin = self._starts[indices[0]]
        data = self._file.read(begin, self._stops[indices[-1]])
        with _long_fields():
            return [self._made(data[self._starts[index] - begin : self._stops[index] - begin]) for index in indices]

    def _made(self, data: bytes) -> Row:
        try:
            # As one text: line ends in quotes are part of a field.
            record = next(csv.reader([data.decode("utf-8")], delimiter=self._delimiter, strict=True))
        except csv.Error as cause:
            return BrokenRow(f"not CSV ({cause})")
        if len(record) != len(self._columns):
            return BrokenRow(f"{len(record)} fields where the header has {len(self._columns)}")
        return dict(zip(self._columns, record, strict=True))

    def _is_blank(self, record: list[str] | csv.Error) -> bool:
        if isinstance(record, csv.Error):
            return False
        return not record or (len(record) == 1 < len(self._columns) and not record[0].strip())

    def _digest(self) -> str:
        return self._file.digest_as(f"CSV {self._delimiter!r}")

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


class _Lines:
    """Decoded lines for the parser, and how far it has come."""

    def __init__(self, file: DataFile) -> None:
        self._name, self._lines = file.name, lines(file)
        self.number, self.stop = 0, 0
        self.ended = False

    def __iter__(self) -> Iterator[str]:
        for number, offset, line in self._lines:
            text = decoded(self._name, line, offset, number)
            self.number, self.stop = number, offset + len(line)
            yield text
        self.ended = True


def _records(file: DataFile, delimiter: str) -> Iterator[tuple[int, int, list[str] | csv.Error]]:
    """Where each record begins and ends, and its fields or what is wrong with it."""
    given = _Lines(file)
    reader = csv.reader(given, delimiter=delimiter, strict=True)
    while True:
        start, line = given.stop, given.number + 1
        try:
            record: list[str] | csv.Error = next(reader)
        except StopIteration:
            return
        except csv.Error as cause:
            if given.ended or "field limit" in str(cause):
                raise _endless(file.name, line) from cause
            record = cause
        yield start, given.stop, record


def _endless(name: str, line: int) -> DataError:
    value = f"line {line}: a field that does not end before the file does, or in {_LONGEST} characters"
    remedy = 'Close its quotes; a " inside quotes is written twice.'
    return DataError(name, value, "A field that begins with a quote ends with one.", remedy)


def _delimiter(file: DataFile) -> str:
    """The delimiter that divides the first record into most fields; of equals the first."""
    return max(_DELIMITERS, key=lambda delimiter: _width(file, delimiter))


def _width(file: DataFile, delimiter: str) -> int:
    with _long_fields():
        try:
            record = next((record for _, _, record in _records(file, delimiter) if record), [])
        except DataError:  # in other fields a quote may be none; the reading itself says what is wrong
            return 0
    return len(record) if isinstance(record, list) else 0


def _header(name: str, record: list[str] | csv.Error) -> list[str]:
    """The column names; none for a blank line, or for Excel's `sep=;`, whose delimiter divides it as the others."""
    if isinstance(record, csv.Error):
        rule = "The first record names the columns."
        raise DataError(name, f"the first record is not CSV ({record})", rule, "Correct it; lines end with \\n.")
    columns = [column.strip() for column in record]
    if not any(columns) or (columns[0].lower() == "sep=" and not any(columns[1:])):
        return []
    for column in columns:
        if column and columns.count(column) > 1:
            rule = "The first record names the columns, each by a name of its own."
            raise DataError(name, f"the column name '{column}' twice", rule, "Rename or remove one.")
    return columns


@contextmanager
def _long_fields() -> Iterator[None]:
    """The `csv` module's limit is one for the whole process, so it is raised for as long as it must be."""
    with _limit:
        before = csv.field_size_limit(_LONGEST)
        try:
            yield
        finally:
            csv.field_size_limit(before)
