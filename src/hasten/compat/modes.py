"""Training mode and inference mode, and generation that needs neither call.

Scripts forget `for_inference` often. So `generate` itself runs in evaluation mode without gradients and puts every
module's flag back afterwards: dropout and checkpointing never reach an answer, and training goes on as before.
"""

from __future__ import annotations

from typing import Any

from hasten.generate import inference_mode
from hasten.lora.checkpointing import enable_checkpointing


def for_inference(model: Any) -> Any:
    """Switch to evaluation mode; returns the model."""
    model.eval()
    return model


def for_training(model: Any, use_gradient_checkpointing: bool = True) -> Any:
    """Switch to training mode; returns the model.

    Args:
        model: a transformers model or a `PeftModel`.
        use_gradient_checkpointing: also recompute activations in the backward; False leaves that as it is.
    """
    if use_gradient_checkpointing:
        enable_checkpointing(model)
    model.train()
    return model


def generate(model: Any, *args: Any, **kwargs: Any) -> Any:
    """The model's own `generate`, in evaluation mode whatever mode the model is in."""
    with inference_mode(model):
        return type(model).generate(model, *args, **kwargs)
