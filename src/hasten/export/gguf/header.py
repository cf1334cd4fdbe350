"""The head of a GGUF file: written by the `gguf` package, read back here.

The package's reader makes an object of every token, half a minute for a large vocabulary. Whether a file is whole is
told by its head alone: how many tensors, where each begins, and how long the file is.

Source: GGUF's specification (version 3, little-endian).
"""

from __future__ import annotations

import mmap
import secrets
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGUFValueType, GGUFWriter

from hasten.errors import StorageError
from hasten.export.gguf.encoders import Type
from hasten.export.gguf.mixes import Tensor
from hasten.files import storing

_MAGIC = b"GGUF"
_FIXED = {
    GGUFValueType.UINT8: 1, GGUFValueType.INT8: 1, GGUFValueType.BOOL: 1, GGUFValueType.UINT16: 2,
    GGUFValueType.INT16: 2, GGUFValueType.UINT32: 4, GGUFValueType.INT32: 4, GGUFValueType.FLOAT32: 4,
    GGUFValueType.UINT64: 8, GGUFValueType.INT64: 8, GGUFValueType.FLOAT64: 8,
}  # fmt: skip


def byte_count(tensor: Tensor, kind: Type) -> int:
    """Bytes of a tensor's values, which are whole blocks."""
    block, size = GGML_QUANT_SIZES[kind]
    return prod(tensor.shape) // block * size


def padded(count: int) -> int:
    """Bytes up to where the next tensor may begin."""
    return -(-count // GGUF_DEFAULT_ALIGNMENT) * GGUF_DEFAULT_ALIGNMENT


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """A name beside a file's, for as long as it is being written; what still has it at the end is removed.

    Raises:
        StorageError: a folder has the file's own name, or the file cannot be there.
    """
    if path.is_dir():
        raise StorageError(str(path), "a folder is in the way", "A GGUF file is one file.", "Choose another name.")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def write_header(path: Path, facts: GGUFWriter, tensors: Mapping[str, tuple[Tensor, Type]]) -> None:
    """Write everything but the tensors' values, which follow in the same order, each padded.

    Args:
        path: the new file.
        facts: its metadata; nothing else of it is used.
        tensors: by name.
    """
    writer = GGUFWriter(path, facts.arch)
    writer.kv_data[0].update(facts.kv_data[0])
    for name, (tensor, kind) in tensors.items():
        writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), byte_count(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


@dataclass(frozen=True)
class Placed:
    """A tensor in a file."""

    shape: tuple[int, ...]
    """As torch has it."""
    kind: Type
    start: int
    """Of its values, from the beginning of the file."""
    bytes: int


def read_header(path: Path) -> dict[str, Placed]:
    """Where a file's tensors are.

    Raises:
        StorageError: it is no GGUF file, or shorter than it says.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            found, length = _Cursor(data).tensors(), len(data)
        except (struct.error, ValueError, KeyError) as cause:
            raise _damaged(path, f"its head cannot be read ({cause})") from cause
    end = max((placed.start + placed.bytes for placed in found.values()), default=0)
    if end > length:
        raise _damaged(path, f"it has {length} of {end} bytes")
    return found


class _Cursor:
    """Reads a head from its beginning."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def tensors(self) -> dict[str, Placed]:
        if self.data[:4] != _MAGIC:
            raise ValueError("it does not begin with 'GGUF'")
        self.at = 4
        version, count, facts = self.take("<I"), self.take("<Q"), self.take("<Q")
        if version != 3:
            raise ValueError(f"version {version}")
        alignment = GGUF_DEFAULT_ALIGNMENT
        for _ in range(facts):
            key, kind = self.text(), GGUFValueType(self.take("<I"))
            if key == "general.alignment":
                alignment = self.take("<I")
            else:
                self.skip(kind)
        infos = [self.info() for _ in range(count)]
        begin = -(-self.at // alignment) * alignment
        return {
            name: Placed(shape, kind, begin + offset, byte_count(Tensor(name, shape), kind))
            for name, shape, kind, offset in infos
        }

    def info(self) -> tuple[str, tuple[int, ...], Type, int]:
        name = self.text()
        shape = tuple(self.take("<Q") for _ in range(self.take("<I")))
        return name, shape[::-1], Type(self.take("<I")), self.take("<Q")

    def take(self, form: str) -> int:
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return value

    def text(self) -> str:
        length = self.take("<Q")
        self.at += length
        return self.data[self.at - length : self.at].decode("utf-8")

    def skip(self, kind: GGUFValueType) -> None:
        if kind == GGUFValueType.STRING:
            length = self.take("<Q")
            self.at += length
        elif kind == GGUFValueType.ARRAY:
            of, count = GGUFValueType(self.take("<I")), self.take("<Q")
            if of in _FIXED:
                self.at += count * _FIXED[of]
            else:
                for _ in range(count):
                    self.skip(of)
        else:
            self.at += _FIXED[kind]


def _damaged(path: Path, value: str) -> StorageError:
    return StorageError(str(path), value, "A GGUF file says where its tensors are.", "Write it again.")
