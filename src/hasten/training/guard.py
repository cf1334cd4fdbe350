"""Stops a run whose numbers are not worth having, and names what is wrong with it.

It looks at the loss and the gradient norm of every step, which costs nothing: they are read anyway, and before a
checkpoint or the adapter is written (`hasten.training.trainer`). The weights, billions of values, are looked at only
when those two are bad. By then a bad update may be in the adapter; of it, nothing is saved.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hasten.errors import TrainingError

MOST_OVERFLOWS = 20
"""Steps in a row that a loss scaler may leave out: it begins at 2**16 and halves, so after 16 it does not scale."""

_LOOKED_INTO = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

_ABSURD = 1e4
"""How many times the usual largest entry of a parameter is out of line; biases and norms may well be 100 times it."""


@dataclass
class Suspect:
    """A parameter that no sound model has."""

    name: str
    largest: float
    """Its largest absolute value; NaN where it holds NaN."""
    usual: float
    """The median of the other parameters' largest."""

    def line(self) -> str:
        """What was found, for a message."""
        if math.isfinite(self.largest):
            return f"its largest entry is {self.largest:.1e} (the other parameters': {self.usual:.1e})"
        return f"it holds {'NaN' if math.isnan(self.largest) else 'infinity'}"


def suspect_of(model: Any) -> Suspect | None:
    """The frozen parameter that has made a model's numbers bad, as far as values show: not finite, or far out of line.

    Trained ones are not looked at: once a bad gradient or a high learning rate has reached them, they tell nothing.

    Args:
        model: plain or adapted. Packed 4-bit weights are not looked into.
    """
    largest: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or not parameter.numel() or parameter.dtype not in _LOOKED_INTO:
            continue
        least, most = (float(end) for end in parameter.detach().aminmax())  # both NaN if one entry is
        value = least if math.isnan(least) else max(-least, most)
        if not math.isfinite(value):
            return Suspect(_plain_name(name), value, math.nan)
        if value:  # biases of 0 say nothing about what is usual
            largest[name] = value
    if len(largest) < 2:
        return None
    name = max(largest, key=lambda name: largest[name])
    usual = statistics.median(value for other, value in largest.items() if other != name)
    return Suspect(_plain_name(name), largest[name], usual) if largest[name] > _ABSURD * usual else None


def _plain_name(name: str) -> str:
    """The name that the model's files have for a parameter of an adapted model."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


class Guard(TrainerCallback):
    """Stops a run at the first step whose loss or gradient shows that it cannot learn.

    Args:
        scaled: a loss scaler (float16) leaves out steps whose gradients overflow, until it has found its scale.
    """

    def __init__(self, *, scaled: bool) -> None:
        self.allowed = MOST_OVERFLOWS if scaled else 0
        self.bad_gradients = 0
        """In a row, up to now."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Refuse a loss or gradient that is not finite, and a gradient of exactly 0 where there was something to learn.

        Raises:
            TrainingError: naming the parameter that is to blame, or else the step.
        """
        # A step without learnt tokens has no gradient; it changes nothing and proves nothing.
        if not logs or "loss" not in logs or not logs["supervised_tokens"]:
            return
        loss, grad_norm = logs["loss"], logs["grad_norm"]
        dead = grad_norm == 0
        self.bad_gradients = self.bad_gradients + 1 if dead or not math.isfinite(grad_norm) else 0
        if math.isfinite(loss) and self.bad_gradients <= self.allowed:
            return
        found = f"loss is {loss:.4g}, grad_norm is {grad_norm:.4g}"
        rule = "No gradient reaches the adapter" if dead else "Training on would destroy the adapter"
        rule += "; nothing of this step was saved."
        suspect = suspect_of(model)
        if suspect is None:
            remedy = "Lower training.learning_rate, or use a dtype with more range (bfloat16, float32)."
            raise TrainingError(f"step {state.global_step}", found, rule, remedy)
        raise TrainingError(
            suspect.name,
            f"{suspect.line()}; at step {state.global_step} {found}",
            rule,
            "Get the model's files again and compare their checksums; if they are right, use a dtype with more range "
            "(bfloat16, float32).",
        )
