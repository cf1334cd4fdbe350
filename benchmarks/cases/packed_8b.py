"""A ragged job of an 8B shape, packed into rows of 2,048 tokens, 2 rows a step, whole trainers.

python benchmarks/run.py packed_8b rows=alpaca.json [model=FOLDER] [arms=hasten,trl]

Each arm packs as it does: the steps hold other rows, so only the losses of random weights are compared.
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
    steps: int = 160,
    skip: int = 130,
    repeat: int = 4,
    profile: int = 0,
) -> dict[str, Any]:
    """Two packed rows a step."""
    spec = {"batch": 2, "accumulation": 1, "length": 2048, "packed": True}
    spec |= {"steps": steps, "skip": skip, "repeat": repeat, "profile": profile}
    spec["of_arm"] = {"trl": {"steps": min(steps, 24), "skip": 6}}  # it is slow, and as fast from the beginning
    return run_jobs(arms.split(","), rows=rows, model=model, tokenizer=tokenizer, shape=shape, spec=spec, matched=False)
