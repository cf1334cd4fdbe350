"""Small functions that scripts call: what the machine can do, and calls that need no action here."""

from __future__ import annotations

import gc
from typing import Any

from hasten.compat.notes import say_once
from hasten.hardware.probe import is_bf16_supported as is_bf16_supported
from hasten.hardware.probe import probe

is_bfloat16_supported = is_bf16_supported


def device_type() -> str:
    """``cuda`` or ``cpu``."""
    return "cuda" if probe().is_cuda else "cpu"


def is_vllm_available() -> bool:
    """False: generation goes through transformers."""
    return False


def clear_gpu_memory() -> None:
    """Collect garbage and give cached device memory back."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def patch_dpo_trainer(*args: Any, **kwargs: Any) -> None:
    """Does nothing: trl's DPOTrainer trains the model as it is."""
    _nothing_patched("DPOTrainer")


def patch_kto_trainer(*args: Any, **kwargs: Any) -> None:
    """Does nothing: trl's KTOTrainer trains the model as it is."""
    _nothing_patched("KTOTrainer")


def patch_fast_rl(*args: Any, **kwargs: Any) -> None:
    """Does nothing: trl's reinforcement learning trainers train the model as it is."""
    _nothing_patched("the reinforcement learning trainers")


def _nothing_patched(what: str) -> None:
    say_once(f"{what} of trl is used as it is; nothing is patched")
