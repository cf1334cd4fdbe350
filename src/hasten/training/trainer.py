"""The trainer: `transformers.Trainer` with three things of ours.

1. The loss is the token mean of the whole step (`SftLoss` through the official ``compute_loss_func``).
2. Held-out loss is a token mean too (the stock evaluation averages batches), computed by the same code.
3. It counts the learnt and the real tokens of each step, because speed is reported in learnt tokens.

Composability: everything else (accumulation, resume, schedules, DDP, FSDP) is transformers' and accelerate's own.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from hasten.blocks.packed_attention import packed_attention
from hasten.data.packing import Example, PackedCollator, PaddedCollator, count_supervised
from hasten.objectives.sft import SftLoss, token_loss_sum
from hasten.plan import Plan


class Arguments(TrainingArguments):
    """Training arguments for one device per process: several visible GPUs never become a silent DataParallel."""

    @property
    def n_gpu(self) -> int:
        """At most one; more processes are torchrun's business."""
        return min(super().n_gpu, 1)


@dataclass
class StepCounts:
    """What one optimizer step has read so far."""

    supervised: int = 0
    real: int = 0
    started: float = 0.0


class SftTrainer(Trainer):
    """Supervised fine-tuning on prepared documents.

    Args:
        model: a `PeftModel` or a plain transformers model.
        args: training arguments.
        plan: decides the layout of micro-batches.
        train_examples: documents to train on.
        heldout_examples: documents to measure on.
        pad_id: padding id for padded rows.
        **kwargs: handed to `transformers.Trainer`.
    """

    def __init__(
        self,
        *,
        model: Any,
        args: Arguments,
        plan: Plan,
        train_examples: Sequence[Example],
        heldout_examples: Sequence[Example],
        pad_id: int,
        **kwargs: Any,
    ) -> None:
        self.plan = plan
        self.counts = StepCounts()
        collator = PackedCollator() if plan.layout == "packed" else PaddedCollator(pad_id)
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=list(train_examples),  # type: ignore[arg-type]  # any sized sequence is a dataset
            eval_dataset=list(heldout_examples),  # type: ignore[arg-type]
            compute_loss_func=SftLoss(),
            **kwargs,
        )

    def reading(self) -> contextlib.AbstractContextManager[None]:
        """The context in which the model reads micro-batches of this plan's layout."""
        return packed_attention(self.model) if self.plan.layout == "packed" else contextlib.nullcontext()

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """One micro-batch forward and backward; its tokens are counted."""
        if not self.counts.started:
            self.counts.started = time.perf_counter()
        supervised, real = inputs.pop("counts")
        self.counts.supervised += int(supervised)
        self.counts.real += int(real)
        with self.reading():
            return super().training_step(model, inputs, num_items_in_batch)

    def take_counts(self) -> StepCounts:
        """The counts since the last call; a new step begins."""
        taken, self.counts = self.counts, StepCounts()
        return taken

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The held-out loss, as the log entry `heldout_loss`."""
        metrics = {"heldout_loss": self.heldout_loss()}
        self.log(metrics)
        return metrics

    def heldout_loss(self) -> float:
        """Token mean over all held-out documents, computed by the training's own code.

        Returns:
            nats per learnt token; NaN when there are no held-out documents.
        """
        from hasten.generate import inference_mode

        total, tokens = 0.0, 0
        examples: list[Example] = self.eval_dataset  # type: ignore[assignment]
        size = self.args.per_device_eval_batch_size
        with inference_mode(self.model), self.reading(), self.accelerator.autocast():
            for start in range(0, len(examples), size):
                batch = self.data_collator(examples[start : start + size])  # type: ignore[arg-type]
                tokens += sum(count_supervised(example["labels"]) for example in examples[start : start + size])
                batch.pop("counts")
                inputs = self._prepare_inputs(batch)
                labels = inputs.pop("labels")
                total += float(token_loss_sum(self.model(**inputs).logits, labels))  # type: ignore[misc]
        return total / tokens if tokens else float("nan")
