"""Adapters that begin inside the weights (PiSSA, OLoRA), and the plain adapter that says the same.

    W = W' + s B0 A0                 the adapter takes the main part of a weight, the base keeps the rest W'
    W' + s B A  =  W + s [B, -B0] [A; A0]

Nobody else has W', so an adapter that is saved as it stands is read on W, which it does not fit. What it learnt is
a plain adapter of twice the rank on W. Source: Meng et al. 2024 (PiSSA); peft makes the beginning.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hasten.errors import ConfigError
from hasten.loading.beginning import factors_of
from hasten.loading.plain_adapter import write_plain
from hasten.lora.merge import quantized_weights

_NAME = "hasten_initial"


def require_plain_base(model: Any, init: str, targets: list[str], *, dora: bool) -> None:
    """Refuse what such a beginning does not go with.

    Args:
        model: the base.
        init: peft's `init_lora_weights`.
        targets: what gets an adapter.
        dora: whether DoRA is asked for.

    Raises:
        ConfigError: weights in 4 or 8 bits, DoRA, or an adapter on embedding or head.
    """
    ends = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    names = [name.rpartition(".")[2] for name, module in model.named_modules() if id(module) in ends]
    if found := sorted({target.rpartition(".")[2] for target in targets}.intersection(names)):
        rule = "Embedding and head may share a weight, and what is taken from one would be missing in the other."
        raise ConfigError("init_lora_weights", f"'{init}' with target '{found[0]}'", rule, f"Leave out '{found[0]}'.")
    if quantized_weights(model):
        raise ConfigError(
            "init_lora_weights",
            f"'{init}' on weights in 4 or 8 bits",
            "It changes the weights that it begins in, which must be kept in 16 bits or more.",
            "Load the model in 16 bits, or leave it at its default.",
        )
    if dora:
        rule = "What DoRA learns is not the difference of two products, so it cannot be saved as a plain adapter."
        raise ConfigError("init_lora_weights", f"'{init}' with use_dora", rule, "Leave one of them out.")


def remember(model: Any) -> None:
    """Keep a fresh adapter's factors, in the computer's memory."""
    vars(model)[_NAME] = factors_of(model)


def initial_of(model: Any) -> dict[str, Any] | None:
    """The factors that an adapter began with, where it began inside the weights."""
    return vars(model).get(_NAME)


def as_it_began(model: Any, began: Mapping[str, Any]) -> bool:
    """Whether every factor of an adapter is what it began as."""
    import torch

    return all(torch.equal(part, began[name]) for name, part in factors_of(model).items())


def save_plain(model: Any, began: Mapping[str, Any], folder: Path, *, embedding: bool | str) -> None:
    """Write what an adapter learnt as a plain adapter of twice the rank; weights appear whole or not at all.

    Args:
        model: a `PeftModel`.
        began: the factors that it began with.
        folder: is there.
        embedding: peft's `save_embedding_layers`.
    """
    from peft import get_peft_model_state_dict

    adapter = model.active_adapter
    found = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=embedding)  # type: ignore[arg-type]
    write_plain(found, began, model.peft_config[adapter], folder)
