"""What a check found: one line for people, the same for programs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args

State = Literal["ok", "note", "warning", "fault", "skipped"]
STATES: tuple[State, ...] = get_args(State)


@dataclass(frozen=True)
class Finding:
    """One line.

    A *fault* keeps hasten from doing here what it could do; a *warning* makes it slower or may stop it later; a *note*
    is worth knowing. *ok* is only said of what was read and understood.
    """

    state: State
    subject: str
    found: str
    """A sentence or less: what it is, and what follows from it."""
    remedy: str | None = None
    """Commands to copy, one a line."""

    def as_dict(self) -> dict[str, object]:
        """Plain values."""
        return dataclasses.asdict(self)
