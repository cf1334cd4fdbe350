"""The bytes of a data file: in order, or by their place.

Rows are read long after a file was first looked through, by several threads, and by processes that were forked or
sent a pickle. So a place is read without a shared position (`pread`), nothing open is pickled, and a file that is no
longer the one that was looked through is refused instead of being read at places that now hold something else.

A `.gz` file is read in order as it is; for reading by place it is unpacked into a temporary file.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import tempfile
import threading
import zlib
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, cast

from hasten.errors import DataError, StorageError

_FAULTS = (OSError, EOFError, zlib.error)
_PIECE = 1 << 16


class Places:
    """An open file that is read by place, by any number of threads.

    Args:
        file: opened for reading binary; it is closed with this object.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self._lock = threading.Lock()

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from `start` to before `stop`."""
        if hasattr(os, "pread"):
            return os.pread(self.file.fileno(), stop - start, start)
        with self._lock:  # Windows: one position for all
            self.file.seek(start)
            return self.file.read(stop - start)

    def __del__(self) -> None:
        self.file.close()


class DataFile:
    """A file of the user's.

    Args:
        path: where it is.
        name: what messages call it, as the user wrote it.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path.absolute(), name  # the working folder may change before a row is read
        self.packed = path.suffix.lower() == ".gz"
        self._stamp: tuple[int, int] | None = None
        self._places: Places | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_places": None}

    @contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """The content (unpacked), from its beginning.

        Raises:
            DataError: the file cannot be read, is damaged, or is not the one that was opened first.
        """
        try:
            with self.path.open("rb") as raw:
                self._require_same(raw)
                with gzip.GzipFile(fileobj=raw) if self.packed else nullcontext(raw) as file:
                    yield cast(BinaryIO, file)
        except StorageError:
            raise
        except _FAULTS as cause:
            raise self._refused(cause) from cause

    def read(self, start: int, stop: int) -> bytes:
        """The bytes of the content from `start` to before `stop`.

        Raises:
            DataError: as `opened`.
        """
        try:
            # Held here, so that another thread's `close` does not close it.
            places = self._places
            if places is None:
                file = self._unpacked() if self.packed else cast(BinaryIO, self.path.open("rb", buffering=0))
                places = self._places = Places(file)
            if not self.packed:
                self._require_same(places.file)
            return places.read(start, stop)
        except StorageError:
            raise
        except _FAULTS as cause:
            raise self._refused(cause) from cause

    def digest_as(self, kind: str) -> str:
        """SHA-256 (hex) of the content as rows of a kind: the same bytes are other rows in another format."""
        with self.opened() as file:
            content = hashlib.file_digest(cast(Any, file), "sha256").hexdigest()
        return hashlib.sha256(f"{kind} {content}".encode()).hexdigest()

    def close(self) -> None:
        """Let go of the file; reading opens it again."""
        self._places = None

    def _refused(self, cause: Exception) -> DataError:
        """An operating system's or unpacker's complaint as an error about this file."""
        if isinstance(cause, OSError) and cause.errno is not None:
            value = f"it cannot be read ({cause.strerror})"
            return DataError(self.name, value, "Data is read from this file.", "Check its permissions.")
        remedy = "Pack it again, or name the unpacked file." if self.packed else "Write it again."
        reason = " ".join(str(cause).split())
        return DataError(self.name, f"it is damaged ({reason})", "Data is read from this file.", remedy)

    def _require_same(self, file: BinaryIO) -> None:
        status = os.fstat(file.fileno())
        stamp = (status.st_size, status.st_mtime_ns)
        if self._stamp is None:
            self._stamp = stamp
        if stamp != self._stamp:
            raise DataError(
                self.name,
                "it was changed while it was in use",
                "Rows are read when they are needed, so the file must stay as it was found.",
                "Start again, with a file that nothing writes to.",
            )

    def _unpacked(self) -> BinaryIO:
        with self.opened() as packed:
            return temporary_file(iter(lambda: packed.read(_PIECE), b""))


class Spool:
    """Rows in a temporary file, for kinds of source that are slow to read by place.

    Args:
        rows: any that can be pickled.

    Raises:
        StorageError: the disk is full.
    """

    def __init__(self, rows: Iterable[Any]) -> None:
        self._stops = array("Q", [0])
        self._places = Places(temporary_file(map(self._packed, rows)))

    def _packed(self, row: Any) -> bytes:
        data = pickle.dumps(row, protocol=pickle.HIGHEST_PROTOCOL)
        self._stops.append(self._stops[-1] + len(data))
        return data

    def __getitem__(self, index: int) -> Any:
        # Its own file without a name, so nobody else wrote what is unpickled.
        return pickle.loads(self._places.read(self._stops[index], self._stops[index + 1]))


def temporary_file(pieces: Iterable[bytes]) -> BinaryIO:
    """A file without a name, filled; it is gone when it is closed.

    Raises:
        StorageError: the disk is full.
    """
    from hasten.files import storage_error

    file = tempfile.TemporaryFile()
    for piece in pieces:
        try:
            file.write(piece)
        except OSError as cause:
            file.close()
            raise storage_error(Path(tempfile.gettempdir()), cause) from cause
    file.flush()
    return cast(BinaryIO, file)
