"""Rows of weights as ggml stores them.

Encoders are ggml's own, from the package `libggml-python` (nothing is compiled here), so that a file has the bytes that
llama.cpp's tools would write. Where it is not installed, the `gguf` package encodes what it can. Rows know nothing of
each other, so blocks of them go to threads: ggml's encoders do not hold Python's lock.

Shapes: N rows of K values, B bytes of a row.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

from hasten.errors import CapabilityError, MissingPackageError, StorageError

Type = GGMLQuantizationType
PLAIN = (Type.F32, Type.F16, Type.BF16)
OF_GGUF = (Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1)
"""What the gguf package encodes itself."""
OF_GGML = (*OF_GGUF, Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q5_K, Type.Q6_K, Type.IQ4_NL, Type.IQ4_XS)
_VALUES = 2**20
"""That a thread takes at once."""
_LIBRARIES = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll")

Encode = Callable[[np.ndarray, np.ndarray | None], np.ndarray]


def row_bytes(kind: Type, width: int) -> int:
    """B, bytes of a row of K values.

    Raises:
        CapabilityError: rows are no whole blocks.
    """
    block, size = GGML_QUANT_SIZES[kind]
    if width % block:
        raise CapabilityError(
            kind.name,
            f"rows of {width} values",
            f"It stores blocks of {block} values, which do not go on from row to row.",
            "Use a type whose blocks fit, or F16.",
        )
    return width // block * size


def encode(rows_NK: np.ndarray, kind: Type, importance_K: np.ndarray | None = None) -> np.ndarray:
    """Rows in one of ggml's types.

    Args:
        rows_NK: float32.
        kind: one of `PLAIN` or `OF_GGML`.
        importance_K: float32, how much an error of each value of a row counts; None: as the encoder has it. F32, F16,
            BF16 and Q8_0 do not ask.

    Returns:
        uint8 ``[N, B]``.

    Raises:
        CapabilityError: rows are no whole blocks.
        MissingPackageError: the type is ggml's alone, and its package is not installed.
    """
    width = row_bytes(kind, rows_NK.shape[1])
    rows_NK = np.ascontiguousarray(rows_NK, dtype=np.float32)
    if kind in PLAIN:
        return np.ascontiguousarray(quants.quantize(rows_NK, kind)).view(np.uint8).reshape(len(rows_NK), width)
    own, step = _encoder(kind), max(1, _VALUES // max(rows_NK.shape[1], 1))
    out_NB = np.empty((len(rows_NK), width), dtype=np.uint8)

    def part(start: int) -> None:
        out_NB[start : start + step] = own(rows_NK[start : start + step], importance_K)

    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        list(threads.map(part, range(0, len(rows_NK), step)))
    return out_NB


@cache
def _encoder(kind: Type) -> Encode:
    library = _library()
    if library is None:
        if kind in OF_GGUF:
            return lambda rows_NK, importance_K: quants.quantize(rows_NK, kind)
        raise MissingPackageError(
            kind.name,
            "libggml-python is not installed",
            "Its encoder is ggml's own.",
            'Run `pip install "hasten[gguf]"`, or use one of ' + ", ".join(each.name for each in OF_GGUF) + ".",
        )
    library.ggml_quantize_init(int(kind))

    def chunk(rows_NK: np.ndarray, importance_K: np.ndarray | None) -> np.ndarray:
        rows_NK = np.ascontiguousarray(rows_NK)
        out_NB = np.empty((len(rows_NK), row_bytes(kind, rows_NK.shape[1])), dtype=np.uint8)
        weights = None if importance_K is None else np.ascontiguousarray(importance_K, dtype=np.float32)
        written = library.ggml_quantize_chunk(
            int(kind),
            rows_NK.ctypes.data,
            out_NB.ctypes.data,
            0,
            len(rows_NK),
            rows_NK.shape[1],
            None if weights is None else weights.ctypes.data,
        )
        if written != out_NB.nbytes:
            rule = "Every row has a fixed number of bytes."
            raise StorageError(kind.name, f"ggml wrote {written} of {out_NB.nbytes} bytes", rule, "Report this.")
        return out_NB

    return chunk


@cache
def _library() -> ctypes.CDLL | None:
    """ggml's base library, or None where its package is not installed."""
    spec = importlib.util.find_spec("libggml")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for name in _LIBRARIES:
            found = next(Path(folder).glob(f"lib*/{name}"), None) or next(Path(folder).glob(f"bin/{name}"), None)
            if found is not None:
                library = ctypes.CDLL(str(found))
                pointer, count = ctypes.c_void_p, ctypes.c_int64
                library.ggml_quantize_init.argtypes = [ctypes.c_int]
                library.ggml_quantize_init.restype = None
                chunk = library.ggml_quantize_chunk
                chunk.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]
                chunk.restype = ctypes.c_size_t
                return library
    return None
