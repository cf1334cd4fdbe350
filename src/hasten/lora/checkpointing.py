"""Gradient checkpointing on a model whose weights are frozen.

Re-entrant checkpointing cuts the graph when no input of a layer requires a gradient, and with frozen weights none
does: the backward fails, or trains the last layers only. Non-re-entrant checkpointing has no such rule, so it is what
hasten asks for; when re-entrant is wanted, the embedding's output is made to require a gradient.
"""

from __future__ import annotations

from typing import Any


def enable_checkpointing(model: Any, *, reentrant: bool = False) -> None:
    """Recompute each decoder layer in the backward instead of keeping its activations."""
    if reentrant:
        model.enable_input_require_grads()
    if hasattr(model, "activation_checkpointing_enable"):  # its name from transformers 5.2x on
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})


def disable_checkpointing(model: Any) -> None:
    """Keep all activations."""
    if hasattr(model, "activation_checkpointing_disable"):
        model.activation_checkpointing_disable()
    else:
        model.gradient_checkpointing_disable()
