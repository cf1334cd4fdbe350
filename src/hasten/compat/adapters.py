"""`get_peft_model`: a fresh LoRA adapter, by the names and defaults that scripts use.

The adapter is PEFT's own; targets are checked one by one (`hasten.lora.targets`) and the first values depend on
`random_state` alone. `FastLanguageModel` and `FastModel` differ only in how targets are chosen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from peft import LoftQConfig, LoraConfig, PeftModel, TaskType

from hasten import schema
from hasten.compat.binding import bind
from hasten.compat.fast import check_checkpointing, make_fast
from hasten.compat.later import BUFFERS
from hasten.compat.modes import for_inference as for_inference
from hasten.compat.modes import for_training as for_training
from hasten.compat.notes import say_once
from hasten.compat.offered import Unoffered, require_defaults
from hasten.compat.origin import Origin, origin_of, set_origin
from hasten.compat.target_choice import Parts, choose_targets
from hasten.errors import ConfigError, HastenError, did_you_mean
from hasten.lora.attach import attach
from hasten.lora.loftq import LOFTQ
from hasten.lora.settings import LoraSettings

SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_WHERE = "get_peft_model"
_UNOFFERED = {
    "qat_scheme": Unoffered((None,), "Leave it None; train in 16 bit or with load_in_4bit=True."),
    "finetune_audio_layers": Unoffered((False,), "Leave it False: only text models are loaded."),
    "task_type": Unoffered((None, TaskType.CAUSAL_LM, "CAUSAL_LM"), "Leave it out: causal models are trained."),
}
# Handed to peft only when they differ from peft's own default, so that an older peft without the field still works.
_PEFT_DEFAULTS = {
    "layers_to_transform": None,
    "layers_pattern": None,
    "init_lora_weights": True,
    "target_parameters": None,
    "ensure_weight_tying": False,
}
_BIASES = ("none", "all", "lora_only")


class DifferentAdapterError(ConfigError, TypeError):
    """A model that has an adapter was asked for another one."""


def language_peft_model(
    model: Any,
    r: int = 16,
    target_modules: Sequence[str] | str | None = SEVEN,
    lora_alpha: float = 16,
    lora_dropout: float = 0.0,
    bias: str = "none",
    layers_to_transform: list[int] | int | None = None,
    layers_pattern: list[str] | str | None = None,
    finetune_last_n_layers: int | None = None,
    use_gradient_checkpointing: bool | str = "unsloth",
    random_state: int = 3407,
    max_seq_length: int = 2048,
    use_rslora: bool = False,
    modules_to_save: list[str] | None = None,
    init_lora_weights: bool | str = True,
    loftq_config: dict[str, Any] | LoftQConfig | None = {},  # noqa: B006  # the documented default; it is only read
    temporary_location: str = BUFFERS,
    qat_scheme: str | None = None,
    target_parameters: list[str] | None = None,
    ensure_weight_tying: bool = False,
    **kwargs: Any,
) -> Any:
    """Put a LoRA adapter on a model.

    Args:
        model: what `from_pretrained` returned.
        r: rank.
        target_modules: module names; every one must exist. ``"all-linear"`` takes every linear layer but the head.
            Embedding and head are trained in full instead of getting an adapter.
        lora_alpha: strength; the adapter is scaled by alpha / r.
        lora_dropout: share of the adapter's inputs set to zero in training.
        bias: ``"none"``, ``"all"`` or ``"lora_only"``.
        layers_to_transform: indices of the layers that get an adapter.
        layers_pattern: name of the list of layers, where peft cannot find it.
        finetune_last_n_layers: adapters on the last layers only.
        use_gradient_checkpointing: what layers keep for their backward; see `hasten.compat.fast`.
        random_state: seed of the adapter's first values.
        max_seq_length: without effect: the loader's counts.
        use_rslora: scale by alpha / sqrt(r).
        modules_to_save: modules trained in full.
        init_lora_weights: as in peft.
        loftq_config: as in peft, of 4 bits and one iteration; goes with ``init_lora_weights="loftq"``, which does
            without it.
        temporary_location: without effect.
        qat_scheme: must be None.
        target_parameters: parameters (not modules) that get an adapter, as in peft.
        ensure_weight_tying: as in peft.
        **kwargs: further fields of `peft.LoraConfig`.

    Returns:
        A `PeftModel`; the model itself under full fine-tuning, or when it has this adapter already.

    Raises:
        CapabilityError: an argument that is not offered.
        ConfigErrors: targets that match no module.
        DifferentAdapterError: the model has another adapter; also a `TypeError`.
    """
    return _adapt(model, dict(locals()), Parts())


def any_peft_model(
    model: Any,
    r: int = 16,
    target_modules: Sequence[str] | str | None = None,
    lora_alpha: float = 16,
    lora_dropout: float = 0.0,
    bias: str = "none",
    finetune_vision_layers: bool = True,
    finetune_language_layers: bool = True,
    finetune_attention_modules: bool = True,
    finetune_mlp_modules: bool = True,
    finetune_last_n_layers: int | None = None,
    layers_to_transform: list[int] | int | None = None,
    layers_pattern: list[str] | str | None = None,
    use_gradient_checkpointing: bool | str = "unsloth",
    random_state: int = 3407,
    max_seq_length: int = 2048,
    use_rslora: bool = False,
    modules_to_save: list[str] | None = None,
    init_lora_weights: bool | str = True,
    loftq_config: dict[str, Any] | LoftQConfig | None = {},  # noqa: B006  # the documented default; it is only read
    task_type: Any = TaskType.CAUSAL_LM,
    temporary_location: str = BUFFERS,
    qat_scheme: str | None = None,
    target_parameters: list[str] | None = None,
    ensure_weight_tying: bool = False,
    finetune_audio_layers: bool = False,
    **kwargs: Any,
) -> Any:
    """Put a LoRA adapter on a model, choosing its parts by kind.

    Args:
        model: what `from_pretrained` returned.
        r: rank.
        target_modules: module names, ``"all-linear"``, or None for the family's own list.
        lora_alpha: strength.
        lora_dropout: as in `language_peft_model`.
        bias: as in `language_peft_model`.
        finetune_vision_layers: without effect: only text models are loaded.
        finetune_language_layers: False leaves nothing to train in a text model, and is refused.
        finetune_attention_modules: whether attention gets adapters.
        finetune_mlp_modules: whether the feed-forward parts get adapters.
        finetune_last_n_layers: adapters on the last layers only.
        layers_to_transform: as in `language_peft_model`.
        layers_pattern: as in `language_peft_model`.
        use_gradient_checkpointing: as in `language_peft_model`.
        random_state: as in `language_peft_model`.
        max_seq_length: without effect.
        use_rslora: as in `language_peft_model`.
        modules_to_save: as in `language_peft_model`.
        init_lora_weights: as in `language_peft_model`.
        loftq_config: as in `language_peft_model`.
        task_type: must be causal language modelling.
        temporary_location: without effect.
        qat_scheme: must be None.
        target_parameters: as in `language_peft_model`.
        ensure_weight_tying: as in `language_peft_model`.
        finetune_audio_layers: must be False.
        **kwargs: further fields of `peft.LoraConfig`.

    Returns:
        As `language_peft_model`.

    Raises:
        CapabilityError: as `language_peft_model`.
        ConfigError: the flags leave nothing to train.
    """
    parts = Parts(finetune_language_layers, finetune_attention_modules, finetune_mlp_modules)
    return _adapt(model, dict(locals()), parts)


def _adapt(model: Any, arguments: dict[str, Any], parts: Parts) -> Any:
    for name in ("model", "parts"):
        arguments.pop(name, None)
    extra: dict[str, Any] = arguments.pop("kwargs")
    require_defaults(_WHERE, arguments, _UNOFFERED)
    _check(arguments, extra)
    origin = origin_of(model)
    compute = origin.compute if origin is not None else "bf16"
    if origin is not None and origin.full_finetuning:
        say_once("full_finetuning=True: every weight is trained, get_peft_model changes nothing")
        return model
    if isinstance(model, PeftModel):
        _require_same(model, {**arguments, **extra}, origin)
        make_fast(model, arguments["use_gradient_checkpointing"], compute)
        return model
    adapted = _attach(model, arguments, extra, parts)
    make_fast(adapted, arguments["use_gradient_checkpointing"], compute)
    known = origin or Origin(name=model.config.name_or_path, base=model.config.name_or_path)
    set_origin(adapted, dataclasses.replace(known, adapter_arguments=_comparable({**arguments, **extra})))
    _note_length(model, arguments["max_seq_length"])
    return bind(adapted)


def _check(arguments: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
    check_checkpointing(arguments["use_gradient_checkpointing"])
    if arguments["bias"] not in _BIASES:
        remedy = did_you_mean(str(arguments["bias"]), _BIASES, "Use 'none'.")
        raise ConfigError("bias", repr(arguments["bias"]), f"It is one of {', '.join(_BIASES)}.", remedy)
    _check_loftq(arguments["loftq_config"], arguments["init_lora_weights"])
    fields = {field.name for field in dataclasses.fields(LoraConfig)} - {"peft_type", "inference_mode"}
    for name in extra:
        if name not in fields:
            remedy = did_you_mean(name, {*arguments, *fields}, "Remove it.")
            raise ConfigError(f"{_WHERE}({name}=...)", "unknown argument", "It is no field of a LoRA adapter.", remedy)


def _check_loftq(config: Any, init: bool | str) -> None:
    """Refuse what such a beginning is not made with: it is always of NF4, and the base stays as it is."""
    given = vars(config) if isinstance(config, LoftQConfig) else config or {}
    where, asked = f"{_WHERE}(loftq_config=...)", repr(config)
    if not isinstance(given, Mapping):
        raise ConfigError(where, asked, "It is a LoftQConfig, a dict or None.", "Leave it out.")
    if given and init != LOFTQ:
        rule = f"It goes with init_lora_weights='{LOFTQ}'."
        raise ConfigError(where, asked, rule, "Leave it out, or set both.")
    allowed = {
        "loftq_bits": (4, "What NF4 lost is made up for."),
        "loftq_iter": (1, "The 4-bit weights stay what load_in_4bit makes of the model, so there is one iteration."),
    }
    for name, value in given.items():
        if name not in allowed:
            raise ConfigError(where, f"'{name}'", "peft does not know it.", did_you_mean(name, allowed, "Remove it."))
        only, rule = allowed[name]
        if value != only:
            raise ConfigError(where, f"{name}={value!r}", rule, f"Use {name}={only}.")


def _attach(model: Any, arguments: Mapping[str, Any], extra: Mapping[str, Any], parts: Parts) -> Any:
    chosen = choose_targets(model, arguments["target_modules"], arguments["modules_to_save"], parts)
    values = {
        "r": arguments["r"],
        "alpha": arguments["lora_alpha"],
        "dropout": arguments["lora_dropout"],
        "targets": chosen.targets,
        "rslora": arguments["use_rslora"],
        "bias": arguments["bias"],
        "modules_to_save": chosen.modules_to_save,
        "seed": arguments["random_state"],
    }
    settings = schema.build(LoraSettings, values, _WHERE)
    peft = {name: arguments[name] for name, default in _PEFT_DEFAULTS.items() if arguments[name] != default}
    if arguments["finetune_last_n_layers"] is not None:
        peft["layers_to_transform"] = _last_layers(model, arguments)
    try:
        attached = attach(model, settings, **peft, **extra)
    except HastenError:
        raise
    except (ValueError, TypeError, NotImplementedError) as cause:
        raise ConfigError(_WHERE, str(cause), "PEFT refuses this adapter.", "Change the argument it names.") from cause
    for note in (*chosen.notes, *attached.notes):
        say_once(note)
    return attached.model


def _last_layers(model: Any, arguments: Mapping[str, Any]) -> list[int]:
    count, last = model.config.get_text_config().num_hidden_layers, arguments["finetune_last_n_layers"]
    if arguments["layers_to_transform"] is not None:
        rule = "It and layers_to_transform both choose layers."
        raise ConfigError("finetune_last_n_layers", str(last), rule, "Leave one of them out.")
    if not isinstance(last, int) or not 1 <= last <= count:
        raise ConfigError("finetune_last_n_layers", str(last), f"The model has {count} layers.", f"Use 1 to {count}.")
    return list(range(count - last, count))


def _comparable(arguments: Mapping[str, Any]) -> dict[str, Any]:
    without = ("use_gradient_checkpointing", "max_seq_length", "temporary_location", "loftq_config")
    made = {name: value for name, value in arguments.items() if name not in without}
    targets = made["target_modules"]
    made["target_modules"] = targets if isinstance(targets, str) or targets is None else sorted(targets)
    return made


def _require_same(model: Any, arguments: Mapping[str, Any], origin: Origin | None) -> None:
    wanted = _comparable(arguments)
    if origin is not None and origin.adapter_arguments:
        # One call through FastModel, the other through FastLanguageModel: only shared arguments compare.
        found = origin.adapter_arguments
    else:
        config = model.peft_config[model.active_adapter]
        names = ("r", "lora_alpha", "lora_dropout", "bias", "use_rslora", "modules_to_save")
        found = {name: getattr(config, name) for name in names}
        if isinstance(wanted["target_modules"], list):
            found["target_modules"] = sorted(config.target_modules or ())
    different = [name for name, value in found.items() if name in wanted and wanted[name] != value]
    if different:
        name = different[0]
        raise DifferentAdapterError(
            f"{_WHERE}({name}=...)",
            f"{wanted[name]!r}, but this model's adapter has {found[name]!r}",
            "A model has one adapter, and a second call may only repeat the first.",
            "Train the model as it is to continue, or load the base model for a new adapter.",
        )


def _note_length(model: Any, length: int) -> None:
    loaded = getattr(model, "max_seq_length", None)
    if loaded is not None and length not in (loaded, 2048):
        say_once(f"get_peft_model(max_seq_length={length}) has no effect; the loader's {loaded} counts")
