"""The API that people arrive with: `FastLanguageModel` and its companions, and unmodified scripts by `hasten run`.

Every name of the ``unsloth`` namespace that scripts import is here, loaded when it is first used. Those that hasten
does not offer can be imported and raise `CapabilityError` when they are called.
"""

from __future__ import annotations

import importlib

_LOADERS, _TEMPLATES = "hasten.compat.loaders", "hasten.compat.chat_templates"
_TRAINER, _SMALL = "hasten.compat.trainer", "hasten.compat.small"
_LANGUAGE = ("Language", "Llama", "Mistral", "Qwen2", "Qwen3", "Qwen3Moe", "Granite", "FalconH1")
_HOME: dict[str, tuple[str, str]] = {
    **{f"Fast{family}Model": (_LOADERS, "FastLanguageModel") for family in _LANGUAGE},
    "FastModel": (_LOADERS, "FastModel"),
    "FastTextModel": (_LOADERS, "FastTextModel"),
    "for_inference": ("hasten.compat.modes", "for_inference"),
    "for_training": ("hasten.compat.modes", "for_training"),
    **{
        name: (_TEMPLATES, name)
        for name in (
            "CHAT_TEMPLATES",
            "apply_chat_template",
            "construct_chat_template",
            "get_chat_template",
            "standardize_data_formats",
            "standardize_sharegpt",
            "to_sharegpt",
            "train_on_responses_only",
        )
    },
    **{
        name: (_TRAINER, name)
        for name in ("SFTConfig", "SFTTrainer", "UnslothTrainer", "UnslothTrainingArguments", "unsloth_train")
    },
    "save_pretrained_merged": ("hasten.compat.saving", "save_pretrained_merged"),
    "save_pretrained_gguf": ("hasten.compat.gguf", "save_pretrained_gguf"),
    "print_quantization_methods": ("hasten.compat.gguf", "print_quantization_methods"),
    "is_bf16_supported": (_SMALL, "is_bf16_supported"),
    "is_bfloat16_supported": (_SMALL, "is_bfloat16_supported"),
    "is_vLLM_available": (_SMALL, "is_vllm_available"),
    "clear_gpu_memory": (_SMALL, "clear_gpu_memory"),
    "PatchDPOTrainer": (_SMALL, "patch_dpo_trainer"),
    "PatchKTOTrainer": (_SMALL, "patch_kto_trainer"),
    "PatchFastRL": (_SMALL, "patch_fast_rl"),
    "__version__": ("hasten", "__version__"),
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        module, attribute = _HOME[name]
        return getattr(importlib.import_module(module), attribute)
    if name == "DEVICE_TYPE":
        return importlib.import_module(_SMALL).device_type()
    if not name.startswith("_"):
        placeholders = importlib.import_module("hasten.compat.placeholders").PLACEHOLDERS
        if name in placeholders:
            return placeholders[name]
    raise AttributeError(f"module 'hasten.compat' has no attribute '{name}'")


def names() -> list[str]:
    """Every name of the namespace, offered or not."""
    placeholders = importlib.import_module("hasten.compat.placeholders").PLACEHOLDERS
    return sorted({*_HOME, *placeholders, "DEVICE_TYPE"})


def __dir__() -> list[str]:
    return [*names(), "names"]
