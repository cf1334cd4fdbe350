"""Rows of weights as ggml stores them.

Encoders are ggml's own, from the package `libggml-python` (nothing is compiled here), so that a file has the bytes that
llama.cpp's tools would write. Where it is not installed, the `gguf` package encodes what it can. Rows know nothing of
each other, so blocks of them go to threads: ggml's encoders do not hold Python's lock. Values of 16 bit become float32
in the threads, a block at a time; no float32 copy of a whole weight is ever made.

Shapes: N rows of K values, B bytes of a row.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

from hasten.errors import CapabilityError, MissingPackageError, StorageError
from hasten.hardware.probe import usable_cores

Type = GGMLQuantizationType
PLAIN = (Type.F32, Type.F16, Type.BF16)
OF_GGUF = (Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1)
"""What the gguf package encodes itself."""
OF_GGML = (*OF_GGUF, Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q5_K, Type.Q6_K, Type.IQ4_NL, Type.IQ4_XS)
_VALUES = 2**17
"""That a thread takes at once: its float32 copy stays in a core's cache."""
_LIBRARIES = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll")
_TORCH = {Type.F32: torch.float32, Type.F16: torch.float16, Type.BF16: torch.bfloat16}

Encode = Callable[[np.ndarray, np.ndarray | None, np.ndarray], None]
"""Rows float32 ``[n, K]``, importance float32 ``[K]`` or None, and where the bytes go: uint8 ``[n, B]``."""


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


def encode(
    values: np.ndarray | torch.Tensor,
    kind: Type,
    importance: np.ndarray | None = None,
    *,
    threads: int | None = None,
) -> np.ndarray:
    """Rows in one of ggml's types.

    Args:
        values: ``[..., K]``, e.g. ``[N, K]`` or, of E experts, ``[E, N, K]``; float32 or float16, or a tensor's
            bfloat16.
        kind: one of `PLAIN` or `OF_GGML`.
        importance: float32 ``[K]``, or ``[E, K]`` for experts: how much an error of each value of a row counts;
            None: as the encoder has it. F32, F16, BF16 and Q8_0 do not ask.
        threads: how many encode at once; None: as many as this process may use cores.

    Returns:
        uint8 ``[..., B]``.

    Raises:
        CapabilityError: rows are no whole blocks.
        MissingPackageError: the type is ggml's alone, and its package is not installed.
        StorageError: the encoder wrote another number of bytes than its type has.
    """
    tensor = _tensor(values)
    shape = (*tensor.shape[:-1], row_bytes(kind, tensor.shape[-1]))
    if kind in PLAIN:
        return tensor.to(_TORCH[kind]).contiguous().view(torch.uint8).numpy().reshape(shape)
    if importance is not None and importance.ndim == 2:  # each expert has its own
        parts = [encode(tensor[number], kind, importance[number], threads=threads) for number in range(len(importance))]
        return np.stack(parts)
    rows_NK = tensor.reshape(-1, tensor.shape[-1])
    weights = None if importance is None else np.ascontiguousarray(importance, dtype=np.float32)
    assert weights is None or weights.shape == rows_NK.shape[1:], "one weight for each value of a row"
    own, step = _encoder(kind), max(1, _VALUES // max(rows_NK.shape[1], 1))
    out_NB = np.empty((len(rows_NK), shape[-1]), dtype=np.uint8)

    def part(start: int) -> None:
        own(rows_NK[start : start + step].float().contiguous().numpy(), weights, out_NB[start : start + step])

    with ThreadPoolExecutor(threads or usable_cores()) as pool:
        list(pool.map(part, range(0, len(rows_NK), step)))
    return out_NB.reshape(shape)


def has_ggml() -> bool:
    """Whether ggml's own encoders are here; without them there are `PLAIN` and `OF_GGUF`, without importance."""
    return _library() is not None


def _tensor(values: np.ndarray | torch.Tensor) -> torch.Tensor:
    if isinstance(values, torch.Tensor):
        return values.detach()
    # torch does not take memory that it could not write to, such as a file's.
    return torch.from_numpy(np.require(values, requirements=("C", "W")))


@cache
def _encoder(kind: Type) -> Encode:
    library = _library()
    if library is None:
        if kind in OF_GGUF:
            return partial(_by_gguf, kind)
        raise _missing(kind.name, "use one of " + ", ".join(each.name for each in OF_GGUF))
    library.ggml_quantize_init(int(kind))

    def into(rows_nK: np.ndarray, importance_K: np.ndarray | None, out_nB: np.ndarray) -> None:
        written = library.ggml_quantize_chunk(
            int(kind),
            rows_nK.ctypes.data,
            out_nB.ctypes.data,
            0,
            len(rows_nK),
            rows_nK.shape[1],
            None if importance_K is None else importance_K.ctypes.data,
        )
        if written != out_nB.nbytes:
            rule = "Every row has a fixed number of bytes."
            raise StorageError(kind.name, f"ggml wrote {written} of {out_nB.nbytes} bytes", rule, "Report this.")

    return into


def _by_gguf(kind: Type, rows_nK: np.ndarray, importance_K: np.ndarray | None, out_nB: np.ndarray) -> None:
    if importance_K is not None and kind != Type.Q8_0:  # Q8_0 never asks
        raise _missing(f"{kind.name} with an importance matrix", "leave the importance matrix out")
    np.copyto(out_nB, quants.quantize(rows_nK, kind))


def _missing(what: str, otherwise: str) -> MissingPackageError:
    return MissingPackageError(
        what,
        "libggml-python is not installed",
        "Its encoder is ggml's own.",
        f'Run `pip install "hasten[gguf]"`, or {otherwise}.',
    )


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
