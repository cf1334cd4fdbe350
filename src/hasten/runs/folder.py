"""One run folder: what is in it, and the only code that reads or writes it.

A job and its readers (commands, notebooks, the web page) share nothing but files. So whole files are replaced
atomically, row files only ever grow by whole lines, and a reader takes every file as it finds it: missing, cut off
after a crash, or written by a newer version. docs/run-folder.md is the contract in words.
"""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import math
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from hasten.errors import RunError
from hasten.files import make_folder, storing, write_json, write_text
from hasten.runs.status import SCHEMA_VERSION, Status, check_version, parse, read_object, read_status

RECORD = "run.json"
METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
RESUMED = "resumed.jsonl"
STATUS = "status.json"
RESULT = "result.json"
ERROR = "error.txt"
PAGE = "report.html"
CONTROL = "control"

LATEST = "last"
"""The word that stands for the newest run; no run may be called so."""

_BLOCK = 65536
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")


class RunFolder:
    """A run's folder.

    Made by `create` or `create_at` (a new run) or `open` (an existing one), not by its constructor.

    Args:
        path: the folder; kept absolute, so that a later change of the working directory does no harm.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock = threading.Lock()
        self._mended: set[str] = set()

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @classmethod
    def create(cls, root: Path, name: str | None = None) -> RunFolder:
        """Make the folder of a new run below the folder of runs.

        Args:
            root: the folder that holds the runs; made if missing.
            name: the run's name; a time and four random digits by default.

        Returns:
            The new folder. It has no record yet: see `write_record`.

        Raises:
            RunError: the name is not allowed, or that folder exists and is not empty.
            StorageError: the folder cannot be written.
        """
        if name is None:
            name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        if not is_name(name):
            raise RunError(
                "run name",
                repr(name),
                f"A name has up to 100 of a-z A-Z 0-9 . _ -, does not start with a dot and is not '{LATEST}'.",
                "Choose another name.",
            )
        path = root / name
        with storing(path):
            taken = path.is_dir() and any(path.iterdir())
        if taken:
            raise RunError(str(path), "already exists", "A run never overwrites another.", "Choose another name.")
        return cls._make(path)

    @classmethod
    def create_at(cls, path: Path) -> RunFolder:
        """Make the folder of a new run exactly where the user wants it.

        Args:
            path: the folder; it may exist, and may hold other files, but not a run.

        Returns:
            The new folder. It has no record yet: see `write_record`.

        Raises:
            RunError: the folder already holds a run.
            StorageError: the folder cannot be written.
        """
        cls.refuse_taken(path)
        return cls._make(path)

    @staticmethod
    def refuse_taken(path: Path) -> None:
        """Refuse a folder that already holds a run; writes nothing.

        Args:
            path: the folder, which need not exist.

        Raises:
            RunError: it holds a run.
            StorageError: it cannot be looked into.
        """
        with storing(path):
            taken = (path / RECORD).exists()
        if taken:
            raise RunError(
                str(path), "already holds a run", "A run never overwrites another.", "Choose another folder."
            )

    @classmethod
    def _make(cls, path: Path) -> RunFolder:
        folder = cls(make_folder(path))
        make_folder(folder.control)
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open an existing run.

        Args:
            path: the run's folder.

        Returns:
            The folder, whose record was read and understood.

        Raises:
            RunError: there is no record, it is damaged, or a newer hasten wrote it.
        """
        folder = cls(path)
        folder.record()
        return folder

    # --- where things are ---------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The folder's own name, which is the run's."""
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints; the trainer makes it when it saves the first."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The folder of the trained adapter, in PEFT's format."""
        return self.path / "adapter"

    @property
    def control(self) -> Path:
        """The folder through which requests reach the job."""
        return self.path / CONTROL

    @property
    def page(self) -> Path:
        """The HTML report."""
        return self.path / PAGE

    @property
    def status_file(self) -> Path:
        """The file a `StatusWriter` keeps fresh."""
        return self.path / STATUS

    # --- writing: for the job only ------------------------------------------------------------------------------------

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Write what the run is, once, at its start.

        Args:
            record: command, config, versions, hardware, hashes, header, model and so on. The schema version, the name
                and the time are added here. Values JSON does not know (paths, dtypes) are written as their text.

        Raises:
            RunError: the run has a record already.
            StorageError: it could not be written.
        """
        path = self.path / RECORD
        if path.exists():
            raise RunError(str(path), "already exists", "A run's record is written once.", "Start a new run.")
        created = datetime.now(UTC).isoformat(timespec="milliseconds")
        write_json(path, plain({**record, "schema_version": SCHEMA_VERSION, "name": self.name, "created": created}))

    def log_metrics(self, row: Mapping[str, Any]) -> None:
        """Append one row of numbers.

        Args:
            row: at least ``step``. Values that are not finite are stored as null and named under ``nonfinite``.

        Raises:
            StorageError: it could not be written; no part of the row stays.
        """
        nonfinite: list[str] = []
        stored = plain(row, nonfinite=nonfinite)
        if nonfinite:
            stored["nonfinite"] = nonfinite
        self._append(METRICS, stored)

    def log_sample(self, sample: Mapping[str, Any]) -> None:
        """Append one answer of the model.

        Args:
            sample: step, when (``before``, ``after`` or ``step``), prompt and answer.

        Raises:
            StorageError: it could not be written.
        """
        self._append(SAMPLES, plain(sample))

    def log_resumption(self, what: Mapping[str, Any]) -> None:
        """Append what a job that goes on with this run has found and decided: its machine may be another.

        Args:
            what: checkpoint, left_out, header, versions, hardware and so on. The time is added here.

        Raises:
            StorageError: it could not be written.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._append(RESUMED, plain({**what, "time": now}))

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write the final figures; `StorageError` when that fails."""
        write_json(self.path / RESULT, plain(result))

    def write_error(self, text: str) -> None:
        """Keep the full traceback of a run that failed; `StorageError` when that fails."""
        write_text(self.path / ERROR, plain(text))

    def _append(self, name: str, value: object) -> None:
        # Only the first time: the end of the file cannot be judged while somebody else is in mid-write.
        with self._lock:
            _append_line(self.path / name, value, mend=name not in self._mended)
            self._mended.add(name)

    # --- reading: for everybody ---------------------------------------------------------------------------------------

    def record(self) -> dict[str, Any]:
        """What the run is.

        Returns:
            The content of run.json, unknown keys included.

        Raises:
            RunError: it is missing, damaged, or of a newer schema version.
        """
        path = self.path / RECORD
        record = read_object(path)
        if record is None:
            raise RunError(str(self.path), f"holds no {RECORD}", "A run's folder has one.", "Name another folder.")
        check_version(path, record)
        return record

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of numbers along the way the run really took.

        Returns:
            One row per step, by step. The lines of one step are merged. Where a resumed job trained a step again, what
            was logged of that step and of later ones before is left out. Empty when nothing was logged yet.

        Raises:
            RunError: the file exists but cannot be read.
        """
        rows: dict[float, dict[str, Any]] = {}
        newest = -math.inf
        for row in _read_lines(self.path / METRICS):
            step = row.get("step")
            if not isinstance(step, (int, float)) or isinstance(step, bool):
                continue
            # Only training goes back: an evaluation may be logged late, or again, for any step.
            if "loss" in row and (step < newest or "loss" in rows.get(step, {})):
                rows = {earlier: kept for earlier, kept in rows.items() if earlier < step}
                newest = step
            rows[step] = _merged(rows.get(step, {}), row)
            newest = max(newest, step)
        return [rows[step] for step in sorted(rows)]

    def samples(self) -> list[dict[str, Any]]:
        """The answers logged so far, in the order they were written; `RunError` when the file cannot be read."""
        return list(_read_lines(self.path / SAMPLES))

    def resumptions(self) -> list[dict[str, Any]]:
        """What each job that went on with the run found, the oldest first; `RunError` when the file cannot be read."""
        return list(_read_lines(self.path / RESUMED))

    def result(self) -> dict[str, Any] | None:
        """The final figures, or None while there are none; `RunError` when the file is damaged."""
        return read_object(self.path / RESULT)

    def error(self) -> str | None:
        """The traceback of a failed run, or None; `RunError` when the file cannot be read."""
        content = _read_bytes(self.path / ERROR)
        return None if content is None else content.decode("utf-8", "replace")

    def status(self) -> Status | None:
        """How the job is, or None when it has not said so yet; `RunError` when the file is damaged or newer."""
        return None if read_object(self.status_file) is None else read_status(self.status_file)

    def loss_ends(self) -> tuple[float | None, float | None]:
        """The first and the last training loss, quickly: a long file is not read whole.

        Returns:
            Both losses; None where there is none or it was not finite.

        Raises:
            RunError: the rows cannot be read.
        """
        path = self.path / METRICS
        first = _first_line_with(path, "loss")
        if first is None:
            return None, None
        tail = reversed(list(_objects(_last_lines(path))))
        last = next((row for row in tail if "loss" in row), first)
        return _number(first["loss"]), _number(last["loss"])


def is_name(name: str) -> bool:
    """Whether a text may name a run: then it stays below the folder of runs on every system."""
    return _NAME.fullmatch(name) is not None and name != LATEST


def plain(value: Any, path: str = "", nonfinite: list[str] | None = None) -> Any:
    """A value as JSON can hold it.

    Args:
        value: anything; mappings and sequences are gone through.
        path: the dotted name of the value, for `nonfinite`.
        nonfinite: collects the names of numbers that were NaN or infinite.

    Returns:
        The same with NaN and infinities as None, numpy and torch scalars as numbers, other objects as their text.
    """
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        # Half a surrogate pair (a file name, a cut emoji) is no valid UTF-8 and would fail only when written.
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, float):
        if not math.isfinite(value):
            if nonfinite is not None:
                nonfinite.append(path)
            return None
        return float(value)
    if isinstance(value, Mapping):
        return {
            plain(str(key)): plain(item, f"{path}.{key}" if path else str(key), nonfinite)
            for key, item in value.items()
        }
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain({field.name: getattr(value, field.name) for field in dataclasses.fields(value)}, path, nonfinite)
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item, f"{path}.{index}" if path else str(index), nonfinite) for index, item in enumerate(value)]
    return plain(_scalar(value), path, nonfinite)


def _scalar(value: Any) -> Any:
    # numpy and torch scalars have `item`; this package imports neither.
    if getattr(value, "shape", None) == () and callable(getattr(value, "item", None)):
        item = cast(Callable[[], Any], value.item)()
        return item if isinstance(item, (bool, int, float)) else str(item)
    return str(value)


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    stale = [name for name in old.get("nonfinite", []) if name not in new]
    nonfinite = stale + list(new.get("nonfinite", []))
    both = {key: value for key, value in {**old, **new}.items() if key != "nonfinite"}
    return {**both, "nonfinite": nonfinite} if nonfinite else both


def _append_line(path: Path, value: object, mend: bool) -> None:
    line = json.dumps(value, ensure_ascii=False).encode("utf-8") + b"\n"
    with storing(path), path.open("ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if mend:  # a job killed in mid-write left a piece of a line; readers ignored it, so drop it
            end = _end_of_last_line(file, size)
            if end < size:
                size = file.truncate(end)
        if file.write(line) != len(line):  # a disk that fills up takes a part, and complains only the next time
            file.truncate(size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _end_of_last_line(file: io.FileIO, size: int) -> int:
    end = size
    while end:
        start = max(0, end - _BLOCK)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _reading(path: Path, cause: OSError) -> RunError:
    value = f"cannot be read ({cause.strerror or cause})"
    return RunError(str(path), value, "Readers need the run's files.", "Check the folder's permissions.")


def _read_bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as cause:
        raise _reading(path, cause) from cause


def _objects(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            value = parse(line)
        except ValueError:  # what a power cut left behind
            continue
        if isinstance(value, dict):
            yield value


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    # Split at "\n" only: a text may hold other characters that Python takes for line ends. The piece after the last
    # "\n" is an unfinished line.
    return _objects((_read_bytes(path) or b"").split(b"\n")[:-1])


def _last_lines(path: Path) -> list[bytes]:
    try:
        with path.open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - _BLOCK)
            file.seek(start)
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    except OSError as cause:
        raise _reading(path, cause) from cause
    return lines[1:] if start else lines


def _first_line_with(path: Path, key: str) -> dict[str, Any] | None:
    try:
        with path.open("rb") as file:
            return next((row for row in _objects(line for line in file if line.endswith(b"\n")) if key in row), None)
    except FileNotFoundError:
        return None
    except OSError as cause:
        raise _reading(path, cause) from cause


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
