"""Supervised fine-tuning: the token mean of the negative log-likelihood over one optimizer step.

    loss = sum over all learnt tokens of the step (-log p(token | before)) / number of those tokens

The divisor belongs to the whole step (all micro-batches, all devices), so how a step is cut into micro-batches does
not change the update, and a micro-batch without learnt tokens adds nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

from hasten.data.packing import IGNORED


def token_loss_sum(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Summed negative log-likelihood of the learnt tokens, in float32.

    Args:
        logits: ``[1, K, V]`` at the predicting positions only (packed rows), or ``[B, T, V]`` at all positions.
        labels: int64 ``[K]``, the targets of those positions; or ``[1, T]`` or ``[B, T]``, `IGNORED` where nothing is
            learnt. On a GPU the first is faster: the others have to be counted there.
    """
    targets = labels
    if labels.ndim == 2:
        targets = labels[:, 1:]
        if logits.shape[:2] == labels.shape:
            logits = logits[:, :-1]
        else:
            targets = targets[targets != IGNORED]
    return F.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten().to(logits.device), ignore_index=IGNORED, reduction="sum"
    )


def summed_loss(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
    """The same from a model's outputs: its own sum where a fast head gave it, its logits otherwise."""
    return outputs.loss if outputs.logits is None else token_loss_sum(outputs.logits, labels)


class SftLoss:
    """The loss function handed to `transformers.Trainer` as ``compute_loss_func``."""

    def __call__(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int) -> torch.Tensor:
        """This micro-batch's share of the step's token mean."""
        counted = isinstance(num_items_in_batch, torch.Tensor)
        tokens = num_items_in_batch.clamp(min=1).to(labels.device) if counted else max(num_items_in_batch, 1)
        return summed_loss(outputs, labels) / tokens
