"""Asking a running job for something: a file in its folder `control/`, named after the request.

A file needs no port, no signal and no rights beyond the folder's, works between machines that share a disk, and
survives until the job looks: at its next step.
"""

from __future__ import annotations

from hasten.errors import RunError, did_you_mean
from hasten.files import make_folder, write_text
from hasten.runs.folder import RunFolder
from hasten.runs.status import LIVE_STATES, effective_state

REQUESTS = ("stop", "save", "evaluate")


def request(folder: RunFolder, what: str) -> None:
    """Ask the job of a run for something.

    Args:
        folder: the run.
        what: ``stop`` after a checkpoint, ``save`` a checkpoint, or ``evaluate`` at the next step.

    Raises:
        RunError: there is no such request, or the job is not alive.
        StorageError: the request could not be written.
    """
    if what not in REQUESTS:
        rule = f"A job can be asked to {', '.join(REQUESTS)}."
        raise RunError("request", repr(what), rule, did_you_mean(what, REQUESTS, "Ask for one of these."))
    status = folder.status()
    state = "not started" if status is None else effective_state(status)
    if state not in LIVE_STATES:
        raise RunError(
            f"run {folder.name}", f"its job is {state}", "Only a job that is alive can be asked.", "Nothing to do."
        )
    write_text(make_folder(folder.control) / what, "")


def take(folder: RunFolder) -> set[str]:
    """Take the requests that wait, as the job does at every step.

    A job takes once before its first status, too, so that a request an earlier job of this folder left is dropped.

    Args:
        folder: the run.

    Returns:
        The requests; each is handed out once, also when several threads take. Other files are left alone.
    """
    return {what for what in REQUESTS if _took(folder, what)}


def _took(folder: RunFolder, what: str) -> bool:
    # Deleting is the hand-over: it succeeds for one taker only. A file we may not delete would ask again at every
    # step, so it does not count.
    path = folder.control / what
    try:
        if not path.is_file():
            return False
        path.unlink()
    except OSError:
        return False
    return True
