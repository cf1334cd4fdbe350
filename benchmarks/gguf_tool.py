"""llama.cpp's llama-quantize as the other arm of a benchmark, and what two GGUF files have in common."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader

_VALUES = 2**24


def quantized(tool: str, source: Path, target: Path, kind: str, threads: int) -> float:
    """Seconds that llama-quantize takes for a file, its start and its end included."""
    command = [tool, str(source), str(target), kind.upper(), str(threads)]
    begun = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    seconds = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {(done.stdout + done.stderr)[-1000:]}")
    return seconds


def compared(ours: Path, theirs: Path) -> dict[str, Any]:
    """How many tensors two files have, and in how many of them types or bytes are others."""
    files = [{str(each.name): each for each in GGUFReader(path).tensors} for path in (ours, theirs)]
    if files[0].keys() != files[1].keys():
        raise SystemExit(
            f"{ours.name}: other tensors than llama-quantize's: {sorted(files[0].keys() ^ files[1].keys())}"
        )
    pairs = [(files[0][name], files[1][name]) for name in files[0]]
    types = sum(one.tensor_type != other.tensor_type for one, other in pairs)
    unlike = [str(one.name) for one, other in pairs if not _same(one.data, other.data)]
    return {
        "tensors": len(pairs),
        "other_types": types,
        "other_bytes": len(unlike),
        "first_other": (unlike or [None])[0],
    }


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays have the same bytes; some at a time, since they lie in files."""
    if one.nbytes != other.nbytes:
        return False
    first, second = (each.reshape(-1).view(np.uint8) for each in (one, other))
    return all(
        np.array_equal(first[at : at + _VALUES], second[at : at + _VALUES]) for at in range(0, len(first), _VALUES)
    )
