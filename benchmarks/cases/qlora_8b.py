"""A QLoRA step of an 8B shape, 2 x 2048 full rows, frozen weights in NF4 with double quantization.

    python benchmarks/run.py qlora_8b [arms=hasten-qlora,hf-qlora] [profile=20]

`hasten-qlora` recomputes layers and keeps their inputs in host memory, `hasten-qlora-free` keeps everything.
"""

from __future__ import annotations

from typing import Any

from cases import lora_step_8b

ARMS = "hasten-qlora,hasten-qlora-free,hf-qlora"


def run(arms: str = ARMS, steps: int = 6, warmup: int = 3, profile: int = 0) -> dict[str, Any]:
    """All arms, each in its own process."""
    return lora_step_8b.run(arms=arms, steps=steps, warmup=warmup, profile=profile)
