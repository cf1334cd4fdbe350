"""Which modules get an adapter: every requested name must match something, and nothing is adapted by accident.

PEFT raises only if *no* name matches, so one misspelt target of several silently trains a smaller adapter. Here each
name is checked against the model's own linear layers; names of split projections are mapped to a family's fused ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from hasten.errors import ConfigError, ConfigErrors, did_you_mean
from hasten.families.base import Family

ALL_LINEAR = "all-linear"


def linear_names(model: Any) -> list[str]:
    """Full names of the modules that can carry an adapter: linear layers, the head and the embedding included."""
    from torch import nn

    names: list[str] = []
    for name, module in model.named_modules():
        # bitsandbytes' and other quantized layers derive from nn.Linear or keep its attributes.
        if isinstance(module, (nn.Linear, nn.Embedding)) or (
            hasattr(module, "in_features") and hasattr(module, "out_features")
        ):
            names.append(name)
    return names


def default_targets(model: Any, family: Family) -> list[str]:
    """What gets an adapter when nothing is named: the family's list, or every linear layer but the head."""
    present = _last_parts(linear_names(model))
    wanted = [name for name in family.lora_targets if name in present]
    return wanted or all_linear(model)


def all_linear(model: Any) -> list[str]:
    """Last names of all linear layers except the output head and the embedding."""
    outside = {id(model.get_output_embeddings()), id(model.get_input_embeddings())}
    modules = dict(model.named_modules())
    return sorted(_last_parts(name for name in linear_names(model) if id(modules[name]) not in outside))


def resolve_targets(model: Any, requested: Sequence[str], family: Family) -> tuple[list[str], list[str]]:
    """Turn requested names into names that exist in the model.

    Args:
        model: a plain transformers model.
        requested: module names (last part or a dotted suffix), or ``["all-linear"]``, or nothing for the default.
        family: for its default list and its fused projections.

    Returns:
        The names to adapt, and one note for each name that was mapped to a fused module.

    Raises:
        ConfigErrors: every name that matches no module, each with the nearest real name.
    """
    if not requested:
        return default_targets(model, family), []
    if list(requested) == [ALL_LINEAR]:
        return all_linear(model), []
    names = linear_names(model)
    known = sorted(_last_parts(names))
    targets: list[str] = []
    notes: list[str] = []
    problems: list[ConfigError] = []
    for name in requested:
        if any(full == name or full.endswith(f".{name}") for full in names):
            targets.append(name)
        elif (fused := _fused_name(name, family)) is not None:
            targets.append(fused)
            notes.append(f"{name} is part of {fused} in this model; {fused} gets the adapter")
        else:
            remedy = did_you_mean(name, known, "Choose one of them.")
            rule = f"Every target must match a module of the model: {', '.join(known)}."
            problems.append(ConfigError("lora.targets", f"'{name}' matches nothing", rule, remedy))
    if problems:
        raise ConfigErrors(problems)
    return list(dict.fromkeys(targets)), notes


def require_modules(model: Any, requested: Sequence[str]) -> None:
    """Refuse modules to train in full that the model does not have.

    Raises:
        ConfigErrors: every name without a module, each with the nearest real name.
    """
    names = [name for name, _ in model.named_modules() if name]
    problems = [
        ConfigError(
            "lora.modules_to_save",
            f"'{name}' matches nothing",
            "Every name must match a module of the model.",
            did_you_mean(name, sorted(_last_parts(names)), "Remove it."),
        )
        for name in requested
        if not any(full == name or full.endswith(f".{name}") for full in names)
    ]
    if problems:
        raise ConfigErrors(problems)


def _fused_name(name: str, family: Family) -> str | None:
    return next((fused for fused, parts in family.fused.items() if name in parts), None)


def _last_parts(names: Iterable[str]) -> set[str]:
    return {name.rpartition(".")[2] for name in names}
