"""Jobs whose trainers a test looks into."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def each_trainer(patch: Any, change: Callable[[Any], None]) -> None:
    """Change the trainers that jobs make.

    Args:
        patch: pytest's, which undoes it.
        change: called with each trainer.
    """
    from hasten.training import job as jobs

    original = jobs.make_trainer

    def changed(job: Any, checkpoints: Any) -> Any:
        trainer = original(job, checkpoints)
        change(trainer)
        return trainer

    patch.setattr(jobs, "make_trainer", changed)
