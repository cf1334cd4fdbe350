"""Adapters that begin inside the weights (PiSSA, OLoRA), and the plain adapter that says the same.

    W = W' + s B0 A0                 the adapter takes the main part of a weight, the base keeps the rest W'
    W' + s B A  =  W + s [B, -B0] [A; A0]

Nobody else has W', so an adapter that is saved as it stands is read on W, which it does not fit. What it learnt is
a plain adapter of twice the rank on W. Source: Meng et al. 2024 (PiSSA); peft makes the beginning.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from hasten.errors import ConfigError
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
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    vars(model)[_NAME] = {name: part.detach().to("cpu", copy=True) for name, part in state.items() if "lora_" in name}


def initial_of(model: Any) -> dict[str, Any] | None:
    """The factors that an adapter began with, where it began inside the weights."""
    return vars(model).get(_NAME)


def as_it_began(model: Any) -> bool:
    """Whether every factor is what it was, of an adapter that began inside the weights."""
    import torch
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return all(torch.equal(state[name].cpu(), part) for name, part in (initial_of(model) or {}).items())


def save_plain(model: Any, folder: Path, *, embedding: bool | str) -> None:
    """Write what the adapter learnt as a plain adapter of twice the rank; weights appear whole or not at all.

    Args:
        model: a `PeftModel` with `initial_of`.
        folder: is there.
        embedding: peft's `save_embedding_layers`.
    """
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    initial = initial_of(model)
    assert initial is not None
    state, adapter = {}, model.active_adapter
    found = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=embedding)  # type: ignore[arg-type]
    for name, part in found.items():
        value = part.detach().cpu()
        if name in initial:
            before = initial[name].to(value.dtype)
            value = torch.cat((value, before), 0) if "lora_A" in name else torch.cat((value, -before), 1)
        state[name] = value.contiguous().clone()  # tied ones are written twice
    temporary = folder / ".adapter_model.safetensors.tmp"
    try:
        save_file(state, str(temporary), {"format": "pt"})
        temporary.replace(folder / "adapter_model.safetensors")
    finally:
        temporary.unlink(missing_ok=True)
    plain_config(model.peft_config[adapter]).save_pretrained(str(folder))


def plain_config(config: Any) -> Any:
    """The configuration of the plain adapter: the same scale at twice the rank."""
    made = copy.deepcopy(config)
    factor = 2**0.5 if config.use_rslora else 2
    made.r = 2 * config.r
    made.lora_alpha = factor * config.lora_alpha
    made.rank_pattern = {name: 2 * rank for name, rank in config.rank_pattern.items()}
    made.alpha_pattern = {name: factor * alpha for name, alpha in config.alpha_pattern.items()}
    made.init_lora_weights = True
    made.inference_mode = True
    return made
