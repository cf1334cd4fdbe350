"""Plain text: every file is one row, `{"text": ...}`, read when it is asked for.

Line ends become `\n`, so that a text teaches the same whichever system wrote it.
"""

from __future__ import annotations

from collections.abc import Sequence

from hasten.data.readers.files import DataFile
from hasten.data.readers.text_lines import empty, whole_text
from hasten.data.rows import Row, RowSource, text_digest


class TextFiles(RowSource):
    """One or more text files.

    Args:
        files: in the order of the rows; at least one.
        name: what messages call them together.

    Raises:
        DataError: there is one file, and it is empty or cannot be read.
    """

    def __init__(self, files: Sequence[DataFile], name: str) -> None:
        super().__init__(name)
        self._files = list(files)
        if len(files) == 1 and not whole_text(files[0]).strip():
            raise empty(name)

    def __len__(self) -> int:
        return len(self._files)

    def _row(self, index: int) -> Row:
        return {"text": whole_text(self._files[index]).replace("\r\n", "\n")}

    def _digest(self) -> str:
        return text_digest(*(file.digest_as("text") for file in self._files))

    def place(self, index: int) -> str:
        """With the file, where there are several: "row 7 (notes/b.txt)"."""
        where = super().place(index)
        return where if len(self) == 1 else f"{where} ({self._files[index].name})"
