"""hasten: fine-tune language models faster and in less memory, and hand them on unchanged.

Importing this package imports nothing heavy and changes nothing anywhere; every public name is loaded when it is
first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hasten.compat.adapters import for_inference as for_inference
    from hasten.compat.adapters import for_training as for_training
    from hasten.compat.chat_templates import get_chat_template as get_chat_template
    from hasten.compat.chat_templates import standardize_sharegpt as standardize_sharegpt
    from hasten.compat.chat_templates import train_on_responses_only as train_on_responses_only
    from hasten.compat.loaders import FastLanguageModel as FastLanguageModel
    from hasten.compat.loaders import FastModel as FastModel
    from hasten.compat.loaders import FastTextModel as FastTextModel
    from hasten.compat.trainer import SFTConfig as SFTConfig
    from hasten.compat.trainer import SFTTrainer as SFTTrainer
    from hasten.errors import HastenError as HastenError
    from hasten.hardware.probe import is_bf16_supported as is_bf16_supported
    from hasten.training.config import RunConfig as RunConfig
    from hasten.training.job import train as train

_HOME = {
    "FastLanguageModel": "hasten.compat.loaders",
    "FastModel": "hasten.compat.loaders",
    "FastTextModel": "hasten.compat.loaders",
    "HastenError": "hasten.errors",
    "RunConfig": "hasten.training.config",
    "SFTConfig": "hasten.compat.trainer",
    "SFTTrainer": "hasten.compat.trainer",
    "for_inference": "hasten.compat.adapters",
    "for_training": "hasten.compat.adapters",
    "get_chat_template": "hasten.compat.chat_templates",
    "is_bf16_supported": "hasten.hardware.probe",
    "standardize_sharegpt": "hasten.compat.chat_templates",
    "train": "hasten.training.job",
    "train_on_responses_only": "hasten.compat.chat_templates",
}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'hasten' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
