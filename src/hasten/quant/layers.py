"""The decoder layers of a model and the projections in them that can be quantized.

A projection is quantized when it is a plain linear module inside a decoder layer and its rows divide into blocks of 64.
Head and embedding stay as they are: they are few in a large model, and read in 16 bit by everything that loads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from hasten.errors import CapabilityError, ModelError
from hasten.families.base import Blocks, family_of
from hasten.quant import nf4


@dataclass(frozen=True)
class Layer:
    """One decoder layer."""

    name: str
    """As `model.get_submodule` takes it."""
    module: nn.Module
    projections: tuple[str, ...]
    """Full names of what is quantized, in the order of the forward as far as modules are declared in it."""
    uneven: tuple[str, ...]
    """Full names of linear modules whose rows do not divide into blocks."""

    def linears(self) -> dict[str, nn.Linear]:
        """The projections' modules by their full names."""
        found = {name: self.module.get_submodule(name.removeprefix(f"{self.name}.")) for name in self.projections}
        return cast(dict[str, nn.Linear], found)


def decoder_layers(model: Any) -> list[Layer]:
    """The layers of a causal language model.

    Raises:
        ModelError: the weights are quantized already.
        CapabilityError: no list of decoder layers is where it is in other models, or nothing in it can be quantized.
    """
    refuse_quantized(model.config)
    where = (family_of(model.config.model_type).blocks or Blocks()).layers
    decoder = model.get_decoder()
    modules = getattr(decoder, where, None)
    rule = "Dynamic quantization goes through a model layer by layer."
    if not isinstance(modules, nn.ModuleList):
        raise CapabilityError(
            f"model_type '{model.config.model_type}'",
            f"no list of decoder layers at '{where}'",
            rule,
            "Load it with load_in_4bit=True instead.",
        )
    prefix = next(name for name, module in model.named_modules() if module is modules)
    layers = [_layer(f"{prefix}.{number}", module) for number, module in enumerate(modules)]
    if not any(layer.projections for layer in layers):
        raise CapabilityError(
            f"model_type '{model.config.model_type}'",
            "no linear module whose width is a multiple of 64",
            rule,
            "Keep it in 16 bit.",
        )
    return layers


def refuse_quantized(config: Any) -> None:
    """Only original weights are quantized: rounding twice loses twice.

    Raises:
        ModelError: the configuration says that the weights are quantized.
    """
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return
    fields = quantization if isinstance(quantization, dict) else quantization.to_dict()
    raise ModelError(
        str(getattr(config, "_name_or_path", "") or config.model_type),
        f"its weights are quantized already ({fields.get('quant_method', 'unknown method')})",
        "Quantizing starts from 16-bit weights.",
        "Name the original model.",
    )


def _layer(name: str, module: nn.Module) -> Layer:
    linears = [(f"{name}.{inner}", part) for inner, part in module.named_modules() if type(part) is nn.Linear]
    even = tuple(full for full, part in linears if nf4.fits(tuple(part.weight.shape)))
    return Layer(name, module, even, tuple(full for full, _ in linears if full not in even))
