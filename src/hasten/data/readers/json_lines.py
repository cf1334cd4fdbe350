"""JSON lines: an object a line, found by one look through the file and parsed when it is asked for.

The look notes where every line begins (8 bytes a row) and that the file is UTF-8; whether a line is JSON shows when it
is read. Blank lines are no rows: they count in the line numbers of messages, not in the numbers of rows.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

from hasten.data.readers.files import DataFile
from hasten.data.readers.json_text import parsed_row
from hasten.data.readers.text_lines import decoded, empty, lines
from hasten.data.rows import Row, RowSource


class JsonLines(RowSource):
    """The rows of a .jsonl file.

    Args:
        file: what is read.
        notes: sentences for the run header.

    Raises:
        DataError: the file cannot be read, is not UTF-8, or has no rows.
    """

    def __init__(self, file: DataFile, notes: Iterable[str] = ()) -> None:
        super().__init__(file.name, notes)
        self._file = file
        self._places = array("Q")  # where each row begins, and the end
        stop = 0
        for number, offset, line in lines(file):
            decoded(file.name, line, offset, number)
            if not is_blank(line):
                self._places.append(offset)
            stop = offset + len(line)
        self._places.append(stop)
        if not len(self):
            raise empty(file.name)

    def __len__(self) -> int:
        return len(self._places) - 1

    def __iter__(self) -> Iterator[Row]:
        for number, offset, line in lines(self._file):
            if not is_blank(line):
                text = decoded(self.name, line.rstrip(), offset, number)
                yield parsed_row(self.name, text, lambda number=number: number)

    @property
    def jumps(self) -> bool:
        """Not in a packed file, which is unpacked into a temporary one for that."""
        return not self._file.packed

    def _row(self, index: int) -> Row:
        start, stop = self._places[index], self._places[index + 1]
        # What follows the line are its end and blank lines.
        data = self._file.read(start, stop).rstrip()
        return parsed_row(self.name, data.decode("utf-8"), lambda: self._line_at(start))

    def _line_at(self, place: int) -> int:
        return next(number for number, offset, line in lines(self._file) if offset == place)

    def _digest(self) -> str:
        return self._file.digest_as("JSON lines")

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def is_blank(line: bytes) -> bool:
    """Whether a line has nothing but white space."""
    return not line or line.isspace()
