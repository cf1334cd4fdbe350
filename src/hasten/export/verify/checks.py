"""One line per check: what was compared, how it went, and by how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from hasten.errors import ModelError

State = Literal["equal", "within", "skipped", "wrong"]


@dataclass(frozen=True)
class Check:
    """What became of one comparison."""

    target: str
    """What was written, e.g. ``gguf q4_k_m``."""
    what: str
    """What was compared: weights, tokens, template, logits ..."""
    state: State
    """``equal``, ``within`` its bound, ``skipped`` with the reason, or ``wrong``."""
    said: str
    """By how much, or why."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def require_right(checks: Sequence[Check], where: str) -> None:
    """Refuse a result that something is wrong with.

    Args:
        checks: all of it.
        where: what was written stands, under a name that says it was refused.

    Raises:
        ModelError: naming what is wrong.
    """
    wrong = [check for check in checks if check.state == "wrong"]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise ModelError(
            f"export to {wrong[0].target}",
            f"{wrong[0].what}: {wrong[0].said}{more}",
            "What is read back is what was meant.",
            f"Report this; what was written is in {where}.",
        )


def lines(checks: Sequence[Check]) -> list[str]:
    """A table for people."""
    if not checks:
        return []
    widths = [max(len(getattr(check, part)) for check in checks) for part in ("target", "what", "state")]
    return [
        f"{check.target:{widths[0]}}  {check.what:{widths[1]}}  {check.state:{widths[2]}}  {check.said}"
        for check in checks
    ]
