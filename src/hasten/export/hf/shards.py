"""Files of weights, written tensor by tensor: the header first, which names and sizes already say all of.

A safetensors file is eight bytes (the header's length), the header (JSON: dtype, shape and place of every tensor), and
the tensors' bytes without gaps. So memory is needed for one weight, however large a file is. Every file is read again
when it is complete: names, shapes and dtypes by the safetensors package, bytes by their checksum.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open

from hasten.errors import ConfigError, StorageError
from hasten.export.weights import INDEX, WHOLE, Weights
from hasten.files import storing, write_json

_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3"}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", re.IGNORECASE)
_POWER = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}

Progress = Callable[[int, int], None]
"""Told bytes done, and in all."""


@dataclass(frozen=True)
class Piece:
    """A tensor of a file."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Its size."""
        return prod(self.shape) * self.dtype.itemsize


class Encoding(Protocol):
    """What is written of each weight."""

    def pieces(self, name: str, shape: tuple[int, ...]) -> tuple[Piece, ...]:
        """The tensors that one weight becomes."""
        ...

    def encode(self, name: str, value: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Their values, in the same order."""
        ...


def size_of(text: str | int) -> int:
    """Bytes of a size as transformers takes it: a number, or ``"5GB"`` (1000s), ``"5GiB"`` (1024s).

    Raises:
        ConfigError: it is neither, or not positive.
    """
    found = _SIZE.fullmatch(str(text))
    size = int(float(found[1]) * (1024 if found[3] else 1000) ** _POWER[found[2].upper()]) if found else 0
    if size < 1:
        raise ConfigError("max_shard_size", repr(text), "A size is a number of bytes, or '5GB'.", "Correct it.")
    return size


def plan_files(weights: Mapping[str, Sequence[Piece]], most: int) -> dict[str, list[str]]:
    """Names of files, as transformers gives them, and the weights in each; a larger weight gets a file of its own.

    Args:
        weights: what each weight becomes.
        most: bytes in a file.
    """
    groups: list[list[str]] = [[]]
    size = 0
    for name, pieces in weights.items():
        own = sum(piece.nbytes for piece in pieces)
        if groups[-1] and size + own > most:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += own
    if len(groups) == 1:
        return {WHOLE: groups[0]}
    return {f"model-{number:05}-of-{len(groups):05}.safetensors": group for number, group in enumerate(groups, 1)}


def write_files(
    folder: Path, weights: Weights, encoding: Encoding, most: int, progress: Progress | None = None
) -> tuple[str, ...]:
    """Write every weight, and an index where there is more than one file.

    Args:
        folder: is there.
        weights: read one at a time.
        encoding: what becomes of each.
        most: bytes in a file.
        progress: told after each weight.

    Returns:
        The names of the files.

    Raises:
        StorageError: the disk is full, or what was read back is not what was written.
    """
    layout = {name: encoding.pieces(name, shape) for name, shape in weights.shapes.items()}
    total, done = sum(piece.nbytes for pieces in layout.values() for piece in pieces), 0

    def told(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    files = plan_files(layout, most)
    for file, names in files.items():
        pieces = [piece for name in names for piece in layout[name]]
        values = (value for name in names for value in encoding.encode(name, weights.read(name)))
        verify(folder / file, pieces, write_file(folder / file, pieces, values, told))
    if len(files) > 1:
        places = {piece.name: file for file, names in files.items() for name in names for piece in layout[name]}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))})
    return tuple(files)


def write_file(
    path: Path, pieces: Sequence[Piece], values: Iterable[torch.Tensor], told: Callable[[int], None]
) -> list[int]:
    """Write one file.

    Args:
        path: in a folder that is not yet in its place.
        pieces: what it holds.
        values: theirs, taken one at a time.
        told: told each one's bytes.

    Returns:
        The checksum of each tensor.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for piece in pieces:
        places = [offset, offset + piece.nbytes]
        header[piece.name] = {"dtype": _NAMES[piece.dtype], "shape": list(piece.shape), "data_offsets": places}
        offset += piece.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight
    sums: list[int] = []
    with storing(path), path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for piece, value in zip(pieces, values, strict=True):
            assert value.dtype is piece.dtype and tuple(value.shape) == piece.shape, piece.name
            data = _bytes(value)
            file.write(data)
            sums.append(zlib.crc32(data))
            told(piece.nbytes)
        file.flush()
        os.fsync(file.fileno())
    return sums


def verify(path: Path, pieces: Sequence[Piece], sums: Sequence[int]) -> None:
    """Read a file again.

    Raises:
        StorageError: a tensor is not what was written.
    """
    with safe_open(str(path), "pt") as opened:
        names = set(opened.keys())
        for piece, expected in zip(pieces, sums, strict=True):
            value = opened.get_tensor(piece.name) if piece.name in names else None
            whole = value is not None and value.dtype is piece.dtype and tuple(value.shape) == piece.shape
            if value is None or not whole or zlib.crc32(_bytes(value)) != expected:
                raise StorageError(
                    str(path),
                    f"'{piece.name}' is not what was written",
                    "Every file is read again before it counts.",
                    "Check the disk, or choose another folder.",
                )


def _bytes(value: torch.Tensor) -> memoryview:
    return value.contiguous().view(-1).view(torch.uint8).numpy().data
