"""Putting a fresh adapter on a model, and taking stock of what will be trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hasten.errors import ConfigError
from hasten.families.base import family_of
from hasten.kernels.row_scaled.rows import row_scaled_of
from hasten.loading.beginning import FILE
from hasten.loading.source import begins_inside
from hasten.lora.initial import begin as begin_inside
from hasten.lora.initial import require_plain_base
from hasten.lora.loftq import LOFTQ, begin, require_originals
from hasten.lora.settings import LoraSettings
from hasten.lora.targets import require_modules, resolve_targets

INSIDE = (
    "the adapter begins inside the weights: it is saved as a plain one of twice the rank, and switching it off does "
    "not give the base model"
)

BEGUN = (
    "the adapter begins as what 4 bits lost, so it fits the 4-bit weights; what takes that back on 16-bit weights is "
    f"saved beside it ({FILE})"
)


@dataclass
class Attached:
    """A model with an adapter."""

    model: Any
    targets: list[str]
    notes: list[str] = field(default_factory=list)


def attach(model: Any, settings: LoraSettings, *, began: Mapping[str, Any] | None = None, **peft: Any) -> Attached:
    """Wrap a model with a new LoRA adapter.

    The first values of A depend on `settings.seed` alone: the global random state is left as it was.

    Args:
        model: a plain transformers model (not yet a `PeftModel`).
        settings: rank, strength, targets.
        began: where the adapter begins inside the weights and is to be resumed: the factors that it began with.
        **peft: further fields of `peft.LoraConfig`.

    Raises:
        ConfigErrors: a target or a module to save matches nothing.
        ConfigError: the model already has an adapter, or its weights do not allow the beginning that is asked for.
    """
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model

    if isinstance(model, PeftModel):
        raise ConfigError(
            "lora",
            "this model already has an adapter",
            "Starting a new adapter and continuing one are two things.",
            "Train it as it is to continue, or load the base model to start anew.",
        )
    targets, notes = resolve_targets(model, settings.targets, family_of(model.config.model_type))
    require_modules(model, settings.modules_to_save)
    if settings.init != "default":
        peft["init_lora_weights"] = settings.init
    _refuse_on_codes(model, targets, settings, peft)
    inside = peft.get("init_lora_weights") if begins_inside(peft.get("init_lora_weights")) else None
    if inside:
        require_plain_base(model, inside, targets, dora=peft.get("use_dora", False))
        peft["init_lora_weights"] = True  # the factors come one layer after the other, so that W is there for each
    originals = None
    if peft.get("init_lora_weights") == LOFTQ:
        originals = require_originals(model, targets, settings.alpha, peft)
        peft["init_lora_weights"] = True  # peft's own would quantize the 4-bit weights once more
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.r,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # peft says int and takes any number
        lora_dropout=settings.dropout,
        target_modules=targets,
        use_rslora=settings.rslora,
        bias=settings.bias,
        modules_to_save=settings.modules_to_save or None,
        **peft,
    )
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(settings.seed)
        adapted = get_peft_model(model, config)
        if inside:
            begin_inside(adapted, inside, began)
    if inside:
        notes = [*notes, INSIDE]
    if originals is not None:
        begin(adapted, originals)
        notes = [*notes, BEGUN]
    return Attached(adapted, targets, notes)


def _refuse_on_codes(model: Any, targets: list[str], settings: LoraSettings, peft: Mapping[str, Any]) -> None:
    """Refuse what peft would do with the codes of 8-bit floats, which it takes for a layer's weight.

    Raises:
        ConfigError: DoRA, a beginning that looks at weights, modules trained in full, or adapted parameters.
    """
    codes = [
        name
        for name, module in model.named_modules()
        if (stored := row_scaled_of(module)) is not None and stored.floats
    ]

    def first(wanted: Sequence[str]) -> str | None:
        found = (name for name in codes for each in wanted if name == each or name.endswith(f".{each}"))
        return next(found, None)

    asked: dict[str, tuple[Any, str | None]] = {
        "use_dora": (peft.get("use_dora"), first(targets)),
        "init_lora_weights": (peft.get("init_lora_weights"), first(targets)),
        "modules_to_save": (settings.modules_to_save, first(settings.modules_to_save)),
        "target_parameters": (
            peft.get("target_parameters"),
            first([name.rpartition(".")[0] for name in peft.get("target_parameters") or ()]),
        ),
    }
    for option, (value, name) in asked.items():
        if not value or name is None:
            continue
        if option == "init_lora_weights" and (value in (True, "gaussian", LOFTQ) or begins_inside(value)):
            continue  # nothing of the weight is looked at, or it is refused elsewhere
        raise ConfigError(
            option,
            f"{value!r} with '{name}', which is kept in 8-bit floats",
            "It works on a layer's weight, of which there are only codes.",
            "Load the model in 16 bits (load_in_16bit), or leave it out.",
        )


def trainable_parameters(model: Any) -> tuple[int, int]:
    """Number of trained values and of all values."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = sum(value_count(parameter) for parameter in model.parameters())
    return trained, total


def value_count(parameter: Any) -> int:
    """How many values a parameter stands for; 4-bit ones are stored two to a byte."""
    state = getattr(parameter, "quant_state", None)
    return state.shape.numel() if state is not None else parameter.numel()
