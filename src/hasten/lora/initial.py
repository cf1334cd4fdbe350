"""Adapters that begin inside the weights (PiSSA, OLoRA), and the plain adapter that says the same.

    W = W' + s B0 A0                 the adapter takes the main part of a weight, the base keeps the rest W'
    W' + s B A  =  W + s [B, -B0] [A; A0]

Nobody else has W', so an adapter that is saved as it stands is read on W, which it does not fit. What it learnt is
a plain adapter of twice the rank on W. Source: Meng et al. 2024 (PiSSA); peft computes B0 and A0.

Singular vectors depend on how many threads compute them, and on the machine. A run that is resumed must go on from the
base that it began with, so checkpoints keep B0 and A0, and W' is always made from them in float64: their products are
exact there, and the order of the few sums disappears in rounding to the weight's own type.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hasten.errors import ConfigError, ModelError
from hasten.loading.beginning import ADAPTER, carry, factors_of
from hasten.loading.plain_adapter import write_plain
from hasten.lora.merge import quantized_weights

INITIAL = "hasten_initial"
"""The attribute of a model that remembers its adapter's first factors."""
_PREFIX = "base_model.model."


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


def begin(model: Any, init: str, began: Mapping[str, Any] | None = None) -> None:
    """Let a fresh adapter begin inside the weights, layer by layer, and remember its factors.

    Args:
        model: a `PeftModel` whose adapter is as peft makes it by default.
        init: peft's `init_lora_weights`.
        began: the factors that a checkpoint keeps; None computes them.

    Raises:
        ModelError: the factors that were kept are those of another adapter.
    """
    if began is not None:
        _require_same_shapes(factors_of(model), began)
    for name, module in _adapted(model):
        weight = module.get_base_layer().weight
        a, b = module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight
        whole = weight.data.clone()
        if began is None:
            _compute(module, init)
        else:
            a.data, b.data = (began[f"{_PREFIX}{name}.lora_{kind}.weight"].to(a.device) for kind in "AB")
        weight.data = _without(module, whole, b.data.double() @ a.data.double())
    model.peft_config[ADAPTER].init_lora_weights = init
    carry(model, INITIAL, factors_of(model), _go_on_from)


def _compute(module: Any, init: str) -> None:
    """peft's own factors for a layer."""
    kind = init.partition("_")[0]
    if kind == "olora":
        module.olora_init(ADAPTER)
    else:
        getattr(module, f"{kind}_init")(ADAPTER, init)


def _without(module: Any, weight: Any, product: Any) -> Any:
    """W - s P, rounded once."""
    product = product.to(weight.device)
    rest = weight.double() - module.scaling[ADAPTER] * (product.T if module.fan_in_fan_out else product)
    return rest.to(weight.dtype)


def _go_on_from(model: Any, began: dict[str, Any] | None) -> None:
    """Take a checkpoint's first factors in place of those that were computed here.

    Where they differ, in rounding mostly, the base is brought to what the checkpoint was trained on, up to one rounding
    of its own type. A checkpoint without them is an older one, and goes on as it did.
    """
    import torch

    now = initial_of(model)
    if began is None or now is None or _same(began, now):
        return
    _require_same_shapes(now, began)
    for name, module in _adapted(model):
        a0, b0, a, b = (
            factors[f"{_PREFIX}{name}.lora_{kind}.weight"].double() for factors in (now, began) for kind in "AB"
        )
        weight = module.get_base_layer().weight
        with torch.no_grad():
            weight.copy_(_without(module, weight, b @ a - b0 @ a0))  # in place: fast layers notice
    vars(model)[INITIAL] = began


def _require_same_shapes(now: Mapping[str, Any], began: Mapping[str, Any]) -> None:
    for name in sorted(now.keys() | began.keys()):
        here, kept = (tuple(each[name].shape) if name in each else "nothing" for each in (now, began))
        if here != kept:
            raise ModelError(
                "what the adapter began with",
                f"{kept} for '{name}', where the adapter has {here}",
                "A checkpoint goes on in the adapter that it is of.",
                "Take back what was changed in rank and targets, or train anew.",
            )


def _adapted(model: Any) -> list[tuple[str, Any]]:
    modules = model.get_base_model().named_modules()
    return [(name, module) for name, module in modules if ADAPTER in getattr(module, "lora_A", ())]


def initial_of(model: Any) -> dict[str, Any] | None:
    """The factors that an adapter began with, where it began inside the weights."""
    return vars(model).get(INITIAL)


def as_it_began(model: Any, began: Mapping[str, Any]) -> bool:
    """Whether every factor of an adapter is what it began as."""
    return _same(factors_of(model), began)


def _same(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    import torch

    return left.keys() == right.keys() and all(torch.equal(part, right[name]) for name, part in left.items())


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
