"""Whether a run's job lives and how far it is: the job's side (`StatusWriter`) and the readers' side.

A job that is killed cannot say so. Readers therefore never trust the state alone: on the job's own machine they look
for its process (number *and* start time, since numbers are reused), from another machine they look at the age of the
last heartbeat.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args

import psutil

from hasten.errors import RunError
from hasten.files import write_json

SCHEMA_VERSION = 1
"""The version of the run folder's contract that this code writes, and the newest that it reads."""

State = Literal["starting", "running", "stopping", "finished", "stopped", "failed"]
FinalState = Literal["finished", "stopped", "failed"]

LIVE_STATES = ("starting", "running", "stopping")
DEAD = "dead"

_HEARTBEAT_S = 5.0
_SILENT_S = 120.0
_START_TOLERANCE_S = 2.0


@dataclass(frozen=True)
class Status:
    """One reading of status.json.

    Args:
        state: what the job last said of itself; see `effective_state` for what is true.
        pid: its process number.
        pid_started: when that process started, in seconds since 1970.
        host: the name of its machine.
        heartbeat: when the job last wrote, in seconds since 1970.
        step: optimizer steps done.
        total_steps: optimizer steps planned; 0 while unknown.
        message: one line for people.
        schema_version: the contract's version.
    """

    state: str
    pid: int
    pid_started: float
    host: str
    heartbeat: float
    step: int = 0
    total_steps: int = 0
    message: str = ""
    schema_version: int = SCHEMA_VERSION


def read_status(path: Path) -> Status:
    """Read a status file.

    Args:
        path: the file status.json itself.

    Returns:
        Its content; unknown keys are ignored.

    Raises:
        RunError: it is missing, damaged, or of a newer schema version.
    """
    content = read_object(path)
    if content is None:
        raise RunError(str(path), "missing", "A job writes it when it starts.", "Check that this is a run's folder.")
    check_version(path, content)
    try:
        status = Status(
            state=_typed(content, "state", str),
            pid=_typed(content, "pid", int),
            pid_started=float(_typed(content, "pid_started", (int, float))),
            host=_typed(content, "host", str),
            heartbeat=float(_typed(content, "heartbeat", (int, float))),
            step=_typed(content, "step", int),
            total_steps=_typed(content, "total_steps", int),
            message=_typed(content, "message", str),
            schema_version=content["schema_version"],
        )
    except (KeyError, TypeError) as cause:
        raise _damaged(path, str(cause)) from cause
    if status.state not in get_args(State):
        raise _damaged(path, f"unknown state {status.state!r}")
    return status


def effective_state(status: Status) -> str:
    """The state that is true now.

    Args:
        status: a reading of the status file.

    Returns:
        Its state, or ``dead`` when the job was to be alive but is not.
    """
    if status.state not in LIVE_STATES:
        return status.state
    if status.host != platform.node():
        return DEAD if time.time() - status.heartbeat > _SILENT_S else status.state
    return status.state if _lives(status.pid, status.pid_started) else DEAD


class StatusWriter:
    """The job's side of status.json. Safe to use from several threads.

    The first write may fail like any other; later ones must not end a training, so their errors are kept in
    `last_error` and the next write tries again. As a context manager it ends as ``finished``, ``stopped`` when it was
    interrupted, or ``failed`` when the block raised, unless `close` was called before.

    Args:
        path: the status file, `RunFolder.status_file`.
        total_steps: optimizer steps planned, 0 while unknown.
        message: one line for people.

    Raises:
        StorageError: the file cannot be written.
    """

    def __init__(self, path: Path, total_steps: int = 0, message: str = "") -> None:
        self.path = path
        self.last_error: OSError | None = None
        """The newest write that failed, or None when all went well."""
        self._lock = threading.RLock()  # a signal handler may call in while its own thread is writing
        self._closed = threading.Event()
        self._status = Status(
            state="starting",
            pid=os.getpid(),
            pid_started=0.0,
            host=platform.node(),
            heartbeat=0.0,
            total_steps=total_steps,
            message=message,
        )
        self._write()
        self._thread = threading.Thread(target=self._beat, name="hasten-heartbeat", daemon=True)
        self._thread.start()

    def __enter__(self) -> StatusWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close("finished")
        elif issubclass(kind, KeyboardInterrupt):
            self.close("stopped", "interrupted")
        else:
            self.close("failed", f"{kind.__name__}: {error}")

    def set(
        self,
        state: State | None = None,
        step: int | None = None,
        message: str | None = None,
        total_steps: int | None = None,
    ) -> None:
        """Say something new; what is not given stays. Does nothing after `close`.

        Args:
            state: the new state.
            step: optimizer steps done.
            message: one line for people.
            total_steps: optimizer steps planned.
        """
        given = {"state": state, "step": step, "message": message, "total_steps": total_steps}
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        with self._lock:
            if not self._closed.is_set():
                self._status = replace(self._status, **changes)
                self._try_write()

    def close(self, final_state: FinalState, message: str | None = None) -> None:
        """Say how the run ended and stop the heartbeat; a second call does nothing.

        Args:
            final_state: ``finished``, ``stopped`` or ``failed``.
            message: one line for people.
        """
        with self._lock:
            if self._closed.is_set():
                return
            self._closed.set()
            last = self._status.message if message is None else message
            self._status = replace(self._status, state=final_state, message=last)
            self._try_write()
        self._thread.join()

    def _beat(self) -> None:
        while not self._closed.wait(_HEARTBEAT_S):
            with self._lock:
                if not self._closed.is_set():
                    self._try_write()

    def _try_write(self) -> None:
        try:
            self._write()
        except OSError as error:  # StorageError among them: a full disk, a folder that went away
            self.last_error = error

    def _write(self) -> None:
        # The start time is read again each time: it moves with the clock when that is set, for readers as for us.
        started = psutil.Process(self._status.pid).create_time()
        self._status = replace(self._status, pid_started=started, heartbeat=time.time())
        write_json(self.path, asdict(self._status))


def _lives(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:  # ended, but its parent has not looked yet
            return False
        return abs(process.create_time() - started) <= _START_TOLERANCE_S
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # another user's: there, and nothing more is to be learned
        return True


# --- JSON objects, as the files of a run folder hold them -------------------------------------------------------------


def parse(content: bytes) -> Any:
    """Parse JSON that may be damaged; `ValueError` when it is. NaN and infinities become None."""
    try:
        return json.loads(content, parse_constant=lambda _: None)
    except RecursionError as cause:
        raise ValueError("nested too deeply") from cause


def read_object(path: Path) -> dict[str, Any] | None:
    """Read a file that holds one JSON object.

    Args:
        path: the file.

    Returns:
        The object, or None when there is no such file.

    Raises:
        RunError: it cannot be read or is something else.
    """
    try:
        value = parse(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as cause:
        raise _damaged(path, cause.strerror or str(cause)) from cause
    except ValueError as cause:
        raise _damaged(path, str(cause)) from cause
    if not isinstance(value, dict):
        raise _damaged(path, "not a JSON object")
    return value


def check_version(path: Path, content: Mapping[str, Any]) -> None:
    """Refuse a file of a newer contract.

    Args:
        path: the file, for the message.
        content: what it holds.

    Raises:
        RunError: its schema version is missing or newer than ours.
    """
    version = content.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise _damaged(path, f"schema_version is {version!r}")
    if version > SCHEMA_VERSION:
        raise RunError(
            str(path),
            f"has schema_version {version}",
            f"This hasten reads run folders up to version {SCHEMA_VERSION}.",
            "Upgrade: pip install --upgrade hasten.",
        )


def _typed(content: Mapping[str, Any], key: str, kind: type | tuple[type, ...]) -> Any:
    value = content[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{key} is {value!r}")
    return value


def _damaged(path: Path, why: str) -> RunError:
    return RunError(str(path), f"damaged or unreadable ({why})", "It holds one JSON object.", "Restore or remove it.")
