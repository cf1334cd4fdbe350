"""What an estimate needs to know of a model: shapes, read off a model on torch's meta device.

The model is made by transformers from its configuration, without values; loaders, adapters and fast layers are asked
about it as they would be about the real one. So the shapes are those of the code that will run, for every architecture
that transformers knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hasten.blocks.apply import apply, widths_of
from hasten.errors import ModelError
from hasten.families.base import Family, family_of
from hasten.loading.published import FP8_METHODS, Published, published
from hasten.lora.targets import resolve_targets
from hasten.policies import Widths


@dataclass(frozen=True)
class Weight:
    """One parameter or buffer."""

    name: str
    shape: tuple[int, ...]
    linear: bool = False
    """Whether it is the weight of a linear layer that 4- and 8-bit storage takes in."""
    exact: bool = False
    """Whether it is in 32 bits whatever the model is in."""
    expert: bool = False
    """Whether it holds all experts of a layer in one tensor, which no storage takes in."""
    buffer: bool = False

    @property
    def values(self) -> int:
        """How many there are."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A model, as far as memory goes."""

    name: str
    model_type: str
    family: Family
    weights: tuple[Weight, ...]
    """Each once, tied ones too."""
    adapted: tuple[tuple[int, int], ...]
    """Inputs and outputs of every module that gets an adapter."""
    targets: tuple[str, ...]
    layers: int
    widths: Widths
    """Of one decoder layer; ``item`` is set by who estimates. Of experts, all that one token uses."""
    vocabulary: int
    longest: int
    """Positions that the model was made for; 0: it does not say."""
    fast: bool
    """Whether all its layers, and its head, are fast."""
    why_plain: str = ""
    layout: Published | None = None
    """Of a checkpoint that is published in 8-bit floats."""
    quantized: str = ""
    """How the checkpoint is quantized otherwise; empty: it is not."""
    widened: bool = False
    """Whether a published checkpoint is read into 16 bits: one with experts."""
    largest_group: int = 0
    """Values of the largest group of weights that a fast layer reads into one buffer."""

    @property
    def values(self) -> int:
        """Weights of the whole model."""
        return sum(weight.values for weight in self.weights if not weight.buffer)


def facts_of(name: str, config: Any, targets: Sequence[str] = ()) -> Facts:
    """Read a configuration.

    Args:
        name: of the model, for people.
        config: a transformers configuration of a causal language model.
        targets: modules that get an adapter; none: the family's own.

    Raises:
        ModelError: transformers has no causal language model for it, or it is kept in a way that is not read.
        ConfigErrors: a target matches nothing.
    """
    own: Any = getattr(config, "quantization_config", None)
    own = own if isinstance(own, dict) else {}
    layout, quantized = None, ""
    if own.get("quant_method") in FP8_METHODS:
        layout = published(name, own)
    elif own:
        quantized = str(own.get("quant_method", "unknown"))
        if quantized == "bitsandbytes":
            quantized = "bitsandbytes 4-bit" if own.get("load_in_4bit") else "bitsandbytes 8-bit"
    model = _made(name, config)
    family = family_of(model.config.model_type)
    names, _ = resolve_targets(model, targets, family)
    text = model.config.get_text_config()
    weights = _weights(model, layout, own)
    adapted = tuple(_adapted(model, names))
    layers = int(text.num_hidden_layers)
    applied = apply(model)
    fast = applied.complete
    widths = widths_of(model) if applied.layers else _widths(text)
    return Facts(
        name=name,
        model_type=model.config.model_type,
        family=family,
        weights=weights,
        adapted=adapted,
        targets=tuple(names),
        layers=layers,
        widths=widths,
        vocabulary=int(text.vocab_size),
        longest=int(getattr(text, "max_position_embeddings", 0) or 0),
        fast=fast,
        why_plain="" if fast else applied.line(),
        layout=layout,
        quantized=quantized,
        widened=layout is not None and any(weight.expert for weight in weights),
        largest_group=_largest_group(widths) if applied.layers else 0,
    )


_UNUSABLE = (ValueError, TypeError, LookupError, AttributeError, ImportError, ArithmeticError, RuntimeError)
"""What transformers and torch raise on values that no model has; sizes below zero are a RuntimeError of torch's."""


def _made(name: str, config: Any) -> Any:
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoModelForCausalLM

    plain = type(config).from_dict({key: each for key, each in config.to_dict().items() if key != _QUANTIZED})
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(plain, dtype=torch.bfloat16)
    except (*_UNUSABLE, StrictDataclassError) as cause:
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0][:300]
        raise ModelError(
            name,
            f"no causal language model of type '{config.model_type}' could be made ({reason})",
            "Shapes are read off the model that transformers makes of its configuration.",
            "Check config.json, or upgrade transformers.",
        ) from cause


_QUANTIZED = "quantization_config"


def _weights(model: Any, layout: Published | None, own: dict[str, Any]) -> tuple[Weight, ...]:
    from torch import nn
    from transformers.quantizers.base import HfQuantizer
    from transformers.quantizers.quantizers_utils import should_convert_module

    skipped = own.get("llm_int8_skip_modules")
    kept = HfQuantizer.get_modules_to_not_convert(model, skipped, model._keep_in_fp32_modules)
    strict = tuple(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    linear: set[str] = set()
    for name, module in model.named_modules():
        if type(module) is not nn.Linear:
            continue
        left = layout.leaves(name) if layout else not should_convert_module(name, kept)
        if not left and module is not model.get_output_embeddings():
            linear.add(f"{name}.weight")
    found = []
    for name, parameter in model.named_parameters():
        exact = any(f".{each}." in f".{name}." for each in strict)
        expert = parameter.dim() == 3 and "expert" in name
        found.append(Weight(name, tuple(parameter.shape), linear=name in linear, exact=exact, expert=expert))
    for name, buffer in model.named_buffers():
        found.append(Weight(name, tuple(buffer.shape), exact=buffer.element_size() == 4, buffer=True))
    return tuple(found)


def _adapted(model: Any, names: Sequence[str]) -> list[tuple[int, int]]:
    from torch import nn

    found = []
    for name, module in model.named_modules():
        if not any(name == each or name.endswith(f".{each}") for each in names):
            continue
        if isinstance(module, nn.Embedding):
            found.append((module.num_embeddings, module.embedding_dim))
        elif hasattr(module, "in_features"):
            found.append((int(module.in_features), int(module.out_features)))
    return found


def _widths(text: Any) -> Widths:
    """From the configuration, where no layer is fast: of experts, those that a token goes through."""
    try:
        hidden, heads = int(text.hidden_size), int(text.num_attention_heads)
    except AttributeError as cause:
        rule = "Activations are counted for decoders with attention."
        raise ModelError(
            str(text.model_type), f"its configuration has no {cause.name}", rule, "Name another."
        ) from cause
    width = int(getattr(text, "head_dim", None) or hidden // heads)
    experts = int(getattr(text, "num_experts_per_tok", 0) or 0)
    one = int(getattr(text, "moe_intermediate_size", 0) or getattr(text, "intermediate_size", 0) or 4 * hidden)
    return Widths(
        hidden=hidden,
        query=heads * width,
        key_value=int(getattr(text, "num_key_value_heads", None) or heads) * width,
        mlp=one * max(1, experts),
    )


def _largest_group(widths: Widths) -> int:
    return max(
        (widths.query + 2 * widths.key_value) * widths.hidden,
        2 * widths.mlp * widths.hidden,
        widths.query * widths.hidden,
    )
