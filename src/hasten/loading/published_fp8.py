"""How transformers fills `Fp8Linear` from a checkpoint that is in 8-bit floats already; see `hasten.loading.published`.

To transformers the checkpoint is a plain one, and codes are what each weight is turned into while it is read.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from hasten.errors import ModelError
from hasten.loading.eight_bit import Fp8Layers, Fp8Linear, require_codes, scale_grid
from hasten.loading.published import Published

METHOD = "hasten_published_fp8"
"""Our name among transformers' quantizers; such a model is not saved as it is."""


class PublishedConfig(QuantizationConfigMixin):
    """What transformers is told.

    Args:
        compute_dtype: see `Fp8Linear`; its name in torch.
        layout: a `Published`, as a dict.
    """

    def __init__(self, compute_dtype: str, layout: dict[str, Any]) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]  # transformers' extensions use plain names
        self.compute_dtype = compute_dtype
        self.layout = layout


class PublishedQuantizer(Fp8Layers):
    """Linear layers become `Fp8Linear` before weights are read; codes and scales go into them as they come."""

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        config: Any = self.quantization_config
        layout, dtype = Published(**config.layout), getattr(torch, config.compute_dtype)
        ends = {id(model.get_output_embeddings())}
        for name, module in list(model.named_modules()):
            if type(module) is not nn.Linear or id(module) in ends or layout.leaves(name):
                continue
            made = Fp8Linear(module.in_features, module.out_features, module.bias is not None, dtype, layout.blocks)
            if layout.scale != "weight_scale":  # until it is read, it has the checkpoint's name
                made.register_buffer(layout.scale, made.weight_scale)
                del made.weight_scale
            model.set_submodule(name, made)
        exact = {*(getattr(model, "_keep_in_fp32_modules_strict", None) or ()), layout.scale}
        model._keep_in_fp32_modules_strict = exact  # or transformers casts scales to the model's type while it reads

    @property
    def converted(self) -> tuple[str, ...]:
        """Codes, and their scales."""
        config: Any = self.quantization_config
        return ("weight", config.layout["scale"])

    def get_quantize_ops(self) -> ConversionOps:
        """What a weight goes through."""
        return _Codes()

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        config: Any = self.quantization_config
        layout = Published(**config.layout)
        require_codes(model)
        for name, module in model.named_modules():
            if not isinstance(module, Fp8Linear):
                continue
            scale = getattr(module, layout.scale)
            if layout.scale != "weight_scale":
                delattr(module, layout.scale)
            grid = scale_grid(module.out_features, module.in_features, layout.blocks)
            if layout.per != "block":  # one for all, or one for each output in any shape
                scale = scale.reshape(-1, 1)
                scale = scale.expand(grid).contiguous() if layout.per == "tensor" and len(scale) == 1 else scale
            if tuple(scale.shape) != grid:
                raise ModelError(
                    name,
                    f"its scales are {' x '.join(map(str, scale.shape))}",
                    f"A weight of {module.out_features} x {module.in_features} has {layout.said}.",
                    "Check the checkpoint's files, or name the original 16-bit model.",
                )
            module.register_buffer("weight_scale", scale)
        return model


class _Codes(ConversionOps):
    """Weights become bytes; where transformers has widened them on the way, that is undone, which is exact."""

    def convert(self, input_dict: dict[str, Any], **kwargs: Any) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        for name, value in input_dict.items():
            own = value[0] if isinstance(value, list) else value
            is_weight = name.endswith(".weight")
            found[name] = own.to(torch.float8_e4m3fn).view(torch.uint8) if is_weight else own.float()
        return found


def published_config(layout: Published, compute_dtype: str) -> PublishedConfig:
    """The ``quantization_config`` that reads such a checkpoint; makes its name known to transformers.

    Args:
        layout: what the checkpoint says of itself.
        compute_dtype: see `Fp8Linear`.
    """
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(METHOD)(PublishedConfig)
        register_quantizer(METHOD)(PublishedQuantizer)
    return PublishedConfig(compute_dtype, asdict(layout))


def widen(model: Any, dtype: torch.dtype) -> None:
    """Make plain linear layers of those in 8 bits, one at a time."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Fp8Linear):
            plain = nn.Linear(module.in_features, module.out_features, module.bias is not None, device="meta")
            plain.weight = nn.Parameter(module.dequantized(dtype))
            plain.bias = module.bias
            model.set_submodule(name, plain)
    model.hf_quantizer.remove_quantization_config(model)
