"""Finding runs: all those below a folder, or the one a user names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten.errors import RunError, did_you_mean
from hasten.runs.folder import CONTROL, LATEST, METRICS, RECORD, SAMPLES, STATUS, RunFolder, is_name
from hasten.runs.status import effective_state

UNREADABLE = "unreadable"

_MARKS = (RECORD, STATUS, METRICS, SAMPLES, CONTROL)


@dataclass(frozen=True)
class RunSummary:
    """One line of a list of runs.

    Args:
        name: the run's name.
        path: its folder.
        state: what is true now (see `effective_state`); ``unknown`` without a status, ``unreadable`` when damaged.
        step: optimizer steps done.
        total_steps: optimizer steps planned, 0 while unknown.
        first_loss: the first training loss.
        last_loss: the newest training loss; None also when it was not finite.
        created: when it started, ISO 8601 in UTC; empty when unreadable.
        model: the model's name; empty when unknown.
        reason: why it is unreadable; empty otherwise.
    """

    name: str
    path: Path
    state: str
    step: int = 0
    total_steps: int = 0
    first_loss: float | None = None
    last_loss: float | None = None
    created: str = ""
    model: str = ""
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {**vars(self), "path": str(self.path)}


def list_runs(root: Path) -> list[RunSummary]:
    """All runs directly below a folder.

    Args:
        root: the folder that holds the runs; it need not exist.

    Returns:
        A summary of each, newest first. Folders with nothing of a run in them are left out, damaged runs are not.

    Raises:
        RunError: the folder exists but cannot be read.
    """
    try:
        folders = [path for path in root.iterdir() if not path.name.startswith(".") and path.is_dir()]
    except FileNotFoundError:
        return []
    except OSError as cause:
        value = f"cannot be read ({cause.strerror or cause})"
        raise RunError(
            str(root), value, "It is the folder that holds the runs.", "Name another with --runs."
        ) from cause
    runs = [summarize(path) for path in folders if _looks_like_a_run(path)]
    return sorted(runs, key=lambda run: (run.created, run.name), reverse=True)


def summarize(path: Path) -> RunSummary:
    """Sum up one run folder.

    Args:
        path: the folder.

    Returns:
        Its summary; a damaged folder has the state ``unreadable`` and a reason.
    """
    folder = RunFolder(path)
    try:
        record = folder.record()
        status = folder.status()
        first_loss, last_loss = folder.loss_ends()
    except RunError as error:
        return RunSummary(folder.name, folder.path, UNREADABLE, reason=f"{error.subject}: {error.value}")
    return RunSummary(
        name=folder.name,
        path=folder.path,
        state="unknown" if status is None else effective_state(status),
        step=0 if status is None else status.step,
        total_steps=0 if status is None else status.total_steps,
        first_loss=first_loss,
        last_loss=last_loss,
        created=str(record.get("created", "")),
        model=model_name(record),
    )


def model_name(record: Mapping[str, Any]) -> str:
    """The model's name in a record, whose ``model`` is a text or an object with a ``name`` or ``source``."""
    model = record.get("model")
    if isinstance(model, Mapping):
        model = model.get("name") or model.get("source")
    return str(model) if model else ""


def find_run(root: Path, name_or_path: str) -> RunFolder:
    """Open the run a user means.

    Args:
        root: the folder that holds the runs.
        name_or_path: a name below `root`, a path, or ``last`` for the newest run below `root`.

    Returns:
        The run.

    Raises:
        RunError: there is no such run (the nearest names are given), or it is damaged or of a newer hasten.
    """
    if name_or_path == LATEST:
        runs = [run for run in list_runs(root) if run.state != UNREADABLE]
        if runs:
            return RunFolder.open(runs[0].path)
        raise RunError(str(root), "holds no run", f"'{LATEST}' is the newest run there.", "Name another with --runs.")
    below, anywhere = root / name_or_path, Path(name_or_path)
    if is_name(name_or_path) and _is_run(below):
        return RunFolder.open(below)
    if _is_run(anywhere):
        return RunFolder.open(anywhere)
    names = [run.name for run in list_runs(root)]
    remedy = did_you_mean(
        name_or_path, names, f"Runs there: {', '.join(names[:5])}." if names else "There is none yet."
    )
    raise RunError(f"run '{name_or_path}'", f"not found below {root}", "Give a name there, a path, or 'last'.", remedy)


def _looks_like_a_run(path: Path) -> bool:
    try:
        return any(item.name in _MARKS for item in path.iterdir())
    except OSError:  # it may be one: its summary gives the reason
        return True


def _is_run(path: Path) -> bool:
    try:
        return (path / RECORD).exists()
    except (OSError, ValueError):  # a text that is no path at all: too long, or with a zero byte
        return False
