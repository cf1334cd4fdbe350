"""A LoRA step of an 8B shape on one long row.

python benchmarks/run.py long_8b [arms=hasten-offload,hf] [length=16384]
"""

from __future__ import annotations

from typing import Any

from step_case import run_arms


def run(
    arms: str = "hasten-recompute_mlp,hasten-offload,hf,liger",
    length: int = 16384,
    steps: int = 3,
    warmup: int = 2,
    profile: int = 0,
) -> dict[str, Any]:
    """All arms, each in its own process."""
    spec = {"shape": "8b", "lora": True, "batch": 1, "length": length, "steps": steps, "warmup": warmup}
    return run_arms(arms.split(","), {**spec, "profile": profile})
