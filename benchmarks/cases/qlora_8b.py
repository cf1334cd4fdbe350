"""A QLoRA step of an 8B shape, 2 x 2048 full rows, frozen weights in NF4 with double quantization.

    python benchmarks/run.py qlora_8b [arms=hasten-qlora,hf-qlora] [profile=20]

`hasten-qlora` recomputes layers and keeps their inputs in host memory, `hasten-qlora-free` keeps everything; `-fp8`
makes products of frozen weights in 8-bit floats. `w8` in place of `qlora` keeps the weights in 8-bit floats, not NF4.
"""

from __future__ import annotations

from typing import Any

from cases import lora_step_8b

ARMS = "hasten-qlora,hasten-qlora-fp8,hasten-qlora-free,hasten-qlora-free-fp8,hasten-w8-fp8,hasten-w8-free-fp8,hf-qlora"


def run(arms: str = ARMS, steps: int = 6, warmup: int = 3, profile: int = 0) -> dict[str, Any]:
    """All arms, each in its own process."""
    return lora_step_8b.run(arms=arms, steps=steps, warmup=warmup, profile=profile)
