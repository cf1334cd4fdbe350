"""A ragged job of an 8B shape, 4 rows x 4 accumulations, whole trainers, identical updates.

python benchmarks/run.py ragged_8b rows=alpaca.json [model=FOLDER] [arms=hasten,trl]
"""

from __future__ import annotations

from typing import Any

from job_case import run_jobs


def run(
    rows: str,
    arms: str = "hasten,trl",
    model: str = "",
    tokenizer: str = "",
    shape: str = "8b",
    steps: int = 200,
    skip: int = 160,
    repeat: int = 4,
    profile: int = 0,
) -> dict[str, Any]:
    """Each arm reads the same 16 rows in every step."""
    spec = {"batch": 4, "accumulation": 4, "length": 2048, "packed": False}
    spec |= {"steps": steps, "skip": skip, "repeat": repeat, "profile": profile}
    spec["of_arm"] = {"trl": {"steps": min(steps, 16), "skip": 4}}  # it is slow, and as fast from the beginning
    return run_jobs(arms.split(","), rows=rows, model=model, tokenizer=tokenizer, shape=shape, spec=spec, matched=True)
