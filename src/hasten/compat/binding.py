"""The methods that scripts call on a model, bound on that one object; its class stays as it is.

They are `functools.partial` objects, so a deep copy of the model has methods of its own and a pickled model keeps them.
"""

from __future__ import annotations

import functools
from typing import Any

from hasten.compat import gguf, later, modes, saving
from hasten.kernels.row_scaled.rows import row_scaled_of
from hasten.lora.initial import initial_of

METHODS = {
    "for_inference": modes.for_inference,
    "for_training": modes.for_training,
    "generate": modes.generate,
    "save_pretrained_merged": saving.save_pretrained_merged,
    "push_to_hub_merged": later.push_to_hub_merged,
    "save_pretrained_gguf": gguf.save_pretrained_gguf,
    "push_to_hub_gguf": later.push_to_hub_gguf,
    "save_pretrained_torchao": later.save_pretrained_torchao,
    "save_pretrained_ggml": later.save_pretrained_ggml,
    "push_to_hub_ggml": later.push_to_hub_ggml,
    "fast_generate": later.fast_generate,
    "fast_generate_batches": later.fast_generate_batches,
    "save_lora": later.save_lora,
    "load_lora": later.load_lora,
}


def bind(model: Any) -> Any:
    """Give a model the methods of the compatible API; those of a model inside it are taken away.

    Args:
        model: a transformers model or a `PeftModel`.

    Returns:
        The same model.
    """
    if hasattr(model, "get_base_model"):
        _unbind(model.get_base_model())
    for name, function in METHODS.items():
        setattr(model, name, functools.partial(function, model))
    stored = [row_scaled_of(module) for module in model.modules()] if hasattr(model, "get_base_model") else []
    if any(weight is not None and weight.floats for weight in stored):  # whole numbers are merged by peft
        model.merge_adapter = functools.partial(later.merge_in_8_bits, "merge_adapter")
        model.merge_and_unload = functools.partial(later.merge_in_8_bits, "merge_and_unload")
    if initial_of(model) is not None:
        model.save_pretrained = functools.partial(saving.save_learnt, model)
    return model


def _unbind(model: Any) -> None:
    for name in METHODS:
        vars(model).pop(name, None)
