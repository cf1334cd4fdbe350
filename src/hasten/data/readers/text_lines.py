"""UTF-8 text and its lines, with a named place for every fault.

Lines end at `\n` and nowhere else: U+2028, U+0085 and their kin are legal inside JSON strings and CSV fields. A begin
mark (BOM) is left out.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator

from hasten.data.readers.files import DataFile
from hasten.errors import DataError

_RULE, _REMEDY = "Data files are UTF-8.", "Save it as UTF-8."
_OTHER_MARKS = {  # the longer ones first: UTF-32's begins with UTF-16's
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def lines(file: DataFile) -> Iterator[tuple[int, int, bytes]]:
    """The lines of a file: number from 1, offset in bytes, and the line with its end.

    Raises:
        DataError: the file cannot be read, or begins with the mark of another encoding.
    """
    with file.opened() as opened:
        offset = 0
        for number, line in enumerate(opened, 1):
            if number == 1:
                line, offset = without_mark(file.name, line)
            yield number, offset, line
            offset += len(line)


def without_mark(name: str, data: bytes) -> tuple[bytes, int]:
    """The beginning of a file without UTF-8's mark, and how many bytes that was.

    Raises:
        DataError: it is the mark of another encoding.
    """
    if data.startswith(codecs.BOM_UTF8):
        return data[len(codecs.BOM_UTF8) :], len(codecs.BOM_UTF8)
    for mark, encoding in _OTHER_MARKS.items():
        if data.startswith(mark):
            raise DataError(name, f"{encoding} (byte 0x{data[0]:02x} at offset 0)", _RULE, _REMEDY)
    return data, 0


def decoded(name: str, data: bytes, offset: int = 0, line: int = 1) -> str:
    """Bytes as text.

    Args:
        name: the file, for messages.
        data: a part of it.
        offset: where in the file the part begins.
        line: the line that it begins in.

    Raises:
        DataError: it is not UTF-8, or has a NUL byte; line, byte and offset are named.
    """
    zero = data.find(b"\0")
    if zero >= 0:
        line += data.count(b"\n", 0, zero)
        value = f"line {line}: a NUL byte at offset {offset + zero}"
        raise DataError(name, value, f"{_RULE} Text has no NUL bytes: this is UTF-16, or no text.", _REMEDY)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as cause:
        line += data.count(b"\n", 0, cause.start)
        value = f"line {line}: byte 0x{data[cause.start]:02x} at offset {offset + cause.start} is not UTF-8"
        raise DataError(name, value, _RULE, "Convert the file to UTF-8.") from cause


def whole_text(file: DataFile) -> str:
    """All of a file.

    Raises:
        DataError: as `lines` and `decoded`.
    """
    with file.opened() as opened:
        data, offset = without_mark(file.name, opened.read())
    return decoded(file.name, data, offset)


def empty(name: str, what: str = "an empty file") -> DataError:
    """The error about a source without rows."""
    return DataError(name, what, "It must hold at least one row.", "Write rows into it, or name another.")
