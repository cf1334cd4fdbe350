"""How long the lists and texts of a GGUF say they are, compared with the file before anything is read.

The gguf package makes as many values as a length says, also where the file has ended: a damaged length of 2^60 would
never end. So the metadata are walked once, without making a value of anything.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

_FIXED = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value by the number of its type."""
_TEXT, _LIST = 8, 9
_MOST = 2**24
"""Values of a list: more tokens than any model has."""


def fault(path: Path) -> str | None:
    """What is wrong with the lengths in a file's metadata; None: they fit.

    Args:
        path: a GGUF of this machine's byte order.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            _, fields = struct.unpack_from("<QQ", content, 8)
            place = 24
            for _ in range(fields):
                name, place = _text(content, place)
                (kind,) = struct.unpack_from("<I", content, place)
                place = _behind(content, place + 4, kind)
                if place < 0:
                    return f"field '{name.decode('utf-8', 'replace')[:100]}' has a list of impossible length or kind"
        except struct.error:
            return "it ends within its metadata"
    return None


def _behind(content: mmap.mmap, place: int, kind: int) -> int:
    """Where a value ends; below 0: it cannot be."""
    if kind in _FIXED:
        return place + _FIXED[kind]
    if kind == _TEXT:
        return _text(content, place)[1]
    if kind != _LIST:
        return -1
    kind, count = struct.unpack_from("<IQ", content, place)
    place += 12
    if count > _MOST:
        return -1
    if kind in _FIXED:
        end = place + count * _FIXED[kind]
        return end if end <= len(content) else -1
    if kind != _TEXT:  # lists of lists: the package would put them into one
        return -1
    for _ in range(count):
        place = _end_of_text(content, place)
    return place


def _text(content: mmap.mmap, place: int) -> tuple[bytes, int]:
    end = _end_of_text(content, place)
    return content[place + 8 : end], end


def _end_of_text(content: mmap.mmap, place: int) -> int:
    (length,) = struct.unpack_from("<Q", content, place)
    end = place + 8 + length
    if end > len(content):
        raise struct.error("beyond the end")
    return end
