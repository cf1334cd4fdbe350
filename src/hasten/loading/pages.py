"""Memory that loading leaves behind is given back: files that were read once, and what the C library has kept.

Where a GPU has the machine's own memory, the cached pages of a checkpoint lie beside the weights that were made of it:
the kernel would drop them when memory is needed, but CUDA's figure counts them as used until then. So they are given
back at once. Of files that are still mapped, as weights on a CPU are, nothing is dropped.

Quantizing on a CPU makes and frees 16-bit copies one after the other. glibc keeps much of what was freed for later: a
model of 140 MB in 8 bits was found to hold 300 to 480. So it is asked to return it while weights are read.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_EVERY_S = 0.05


def drop_cached(files: Iterable[Path]) -> int:
    """Tell the kernel that these files will not be read again soon; needs no rights beyond reading them.

    Returns:
        How many it was told of; 0 where the system has no such call, and files that cannot be opened are left out.
    """
    if not hasattr(os, "posix_fadvise"):
        return 0
    told = 0
    for file in files:
        try:
            opened = os.open(file, os.O_RDONLY)
        except OSError:  # gone, or not ours: what it holds in memory is not worth an error
            continue
        try:
            os.posix_fadvise(opened, 0, 0, os.POSIX_FADV_DONTNEED)
            told += 1
        finally:
            os.close(opened)
    return told


def weight_files(where: str, name: str, revision: str | None, hub_cache: str | Path | None = None) -> list[Path]:
    """The safetensors files that a model was read from.

    Args:
        where: its folder, or its hub id.
        name: as the user gave it.
        revision: of a hub repository.
        hub_cache: the hub's cache; None: the usual one.
    """
    folder = Path(where)
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(name, "config.json", cache_dir=hub_cache, revision=revision)
        if not isinstance(cached, str):
            return []
        folder = Path(cached).parent
    return sorted(folder.glob("*.safetensors"))


def trim() -> bool:
    """Have the C library return freed memory; whether it can (glibc)."""
    if not sys.platform.startswith("linux"):
        return False
    call = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if call is None:
        return False
    call(ctypes.c_size_t(0))
    return True


@contextmanager
def returning() -> Iterator[None]:
    """Freed memory is returned again and again while the block runs, and at its end."""
    done = threading.Event()

    def work() -> None:
        while trim() and not done.wait(_EVERY_S):
            pass

    worker = threading.Thread(target=work, name="hasten-returning", daemon=True)
    worker.start()
    try:
        yield
    finally:
        done.set()
        worker.join()
        trim()
