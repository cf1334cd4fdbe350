"""The run record: everything that is needed to know what a run was, in plain values."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Sequence
from typing import Any

import hasten
from hasten.hardware.memory import Budget
from hasten.hardware.probe import Hardware
from hasten.loading.model import Loaded
from hasten.plan import Decision
from hasten.training.config import RunConfig

_PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "tokenizers",
    "safetensors",
    "datasets",
    "trl",
    "bitsandbytes",
)


def make(
    config: RunConfig,
    hardware: Hardware,
    memory: Budget,
    decisions: Sequence[Decision],
    data_hash: str,
    loaded: Loaded,
    command: str,
) -> dict[str, Any]:
    """The record of a run that is about to start.

    Args:
        config: its configuration, defaults included.
        hardware: its machine.
        memory: what the machine had for it before anything was loaded.
        decisions: the header's lines.
        data_hash: of its rows.
        loaded: its model.
        command: what started it.
    """
    template = getattr(loaded.tokenizer, "chat_template", None) or ""
    return {
        "hasten": hasten.__version__,
        "command": command,
        "model": loaded.source.name,
        "base_model": loaded.base.name,
        "config": config.as_dict(),
        "versions": versions(),
        "hardware": hardware.as_dict(),
        "memory": memory.as_dict(),
        "hashes": {"data": data_hash, "template": hashlib.sha256(str(template).encode()).hexdigest()},
        "header": [decision.as_dict() for decision in decisions],
    }


OF_A_JOB = ("hasten", "command", "versions", "hardware", "memory", "header")
"""What may be another for a job that goes on with the run."""


def versions() -> dict[str, str]:
    """Python's and the installed packages' versions."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
