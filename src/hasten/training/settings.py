"""The settings of training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hasten.schema import option


@dataclass(kw_only=True)
class TrainingSettings:
    """How long, how fast, and what is written on the way."""

    steps: int = option(0, "optimizer steps; 0 trains for `epochs`", low=0)
    epochs: float = option(1.0, "passes over the rows, when `steps` is 0", low=0)
    batch_size: int = option(4, "rows per micro-batch", low=1)
    accumulation: int = option(2, "micro-batches per optimizer step", low=1)
    learning_rate: float = option(2e-4, "the highest learning rate", low=0)
    schedule: Literal["linear", "cosine", "constant"] = option("linear", "how the learning rate falls after warm-up")
    warmup_steps: int = option(5, "steps over which the learning rate rises from 0", low=0)
    weight_decay: float = option(0.0, "decoupled weight decay", low=0)
    max_grad_norm: float = option(1.0, "gradients longer than this are shortened to it", low=0)
    optimizer: Literal["adamw", "adamw_8bit"] = option("adamw", "adamw_8bit keeps its state in 8 bit (bitsandbytes)")
    packing: Literal["auto", "on", "off"] = option("auto", "lay rows end to end instead of padding them")
    token_budget: int = option(
        0, "most tokens in one packed micro-batch; 0: as many as `batch_size` rows of the longest can have", low=0
    )
    checkpointing: Literal["auto", "on", "off"] = option("auto", "recompute layers in the backward to save memory")
    evaluate_every: int = option(0, "measure the held-out loss every so many steps; 0: before and after only", low=0)
    save_every: int = option(0, "write a checkpoint every so many steps; 0: none", low=0)
    keep_checkpoints: int = option(2, "how many checkpoints are kept", low=1)
    samples: int = option(2, "held-out questions answered before and after training", low=0)
    sample_tokens: int = option(64, "longest sample answer in tokens", low=1)
    watch_memory: Literal["auto", "on", "off"] = option(
        "auto", "stop with a checkpoint before the machine runs out of memory; auto: where a GPU shares the machine's"
    )
    seed: int = option(3407, "seed of row order and dropout", low=0)
    deterministic: bool = option(False, "bitwise the same run every time on a GPU too, for some speed")
