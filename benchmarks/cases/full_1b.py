"""A step of full fine-tuning, 1B shape, 4 x 2048 full rows.

python benchmarks/run.py full_1b [arms=hasten,hf] [profile=20]
"""

from __future__ import annotations

from typing import Any

from step_case import run_arms

ARMS = "hasten,hasten-recompute,hf,hf-nockpt,liger"


def run(arms: str = ARMS, steps: int = 6, warmup: int = 3, profile: int = 0) -> dict[str, Any]:
    """All arms, each in its own process."""
    spec = {"shape": "1b", "lora": False, "batch": 4, "length": 2048, "steps": steps, "warmup": warmup}
    return run_arms(arms.split(","), {**spec, "profile": profile})
