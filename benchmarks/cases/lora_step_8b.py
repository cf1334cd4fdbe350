"""A LoRA step of an 8B shape, 2 x 2048 full rows.

    python benchmarks/run.py lora_step_8b [arms=hasten,hf] [profile=20]

`-fp8` makes the products of frozen weights in 8-bit floats.
"""

from __future__ import annotations

from typing import Any

from step_case import run_arms

ARMS = "hasten,hasten-fp8,hasten-offload,hf,hf-nockpt,liger,liger-nockpt"


def run(arms: str = ARMS, steps: int = 6, warmup: int = 3, profile: int = 0) -> dict[str, Any]:
    """All arms, each in its own process."""
    spec = {"shape": "8b", "lora": True, "batch": 2, "length": 2048, "steps": steps, "warmup": warmup}
    return run_arms(arms.split(","), {**spec, "profile": profile})
