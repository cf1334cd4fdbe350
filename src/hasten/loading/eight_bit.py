"""Frozen weights in 8-bit floats: linear layers, and how transformers fills them while it reads a checkpoint.

Weights are quantized one by one as they arrive on the device, so that no more than one of them is there in 16 bits. It
goes through transformers' own extension point, under a name of ours.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from hasten.errors import ModelError
from hasten.kernels.row_scaled.op import dequantize, quantize
from hasten.kernels.row_scaled.rows import RowScaled

METHOD = "hasten_fp8"
"""Our name among transformers' quantizers; such a model is not saved as it is."""


class Fp8Linear(nn.Linear):
    """A frozen linear layer: e4m3 weights, one scale per output, dequantized at every use.

    The weight is kept as bytes: peft casts adapters to the type of a floating-point weight.

    Args:
        in_features: K.
        out_features: N.
        bias: whether there is one.
        compute_dtype: of the dequantized weight where no autocast says otherwise.
        blocks: rows and columns that share a scale, or None; see `RowScaled`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        compute_dtype: torch.dtype,
        blocks: tuple[int, int] | None = None,
    ) -> None:
        with torch.device("meta"):
            # The weight's place has the type that a checkpoint's weight is read in; what comes into it are bytes.
            super().__init__(in_features, out_features, bias, dtype=compute_dtype)
            grid = (
                (out_features, 1) if blocks is None else (-(-out_features // blocks[0]), -(-in_features // blocks[1]))
            )
            self.register_buffer("weight_scale", torch.empty(grid, dtype=torch.float32))
        self.weight.requires_grad_(False)
        self.compute_dtype = compute_dtype
        self.blocks = blocks

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight ``[N, K]``."""
        return _values(self.weight, self.weight_scale, self.blocks, dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> Fp8Linear:
        """Moved like any module, but scales stay float32 whatever the model is cast to."""
        exact = self.weight_scale
        super()._apply(fn, recurse)
        if not exact.is_meta:
            self.weight_scale = exact.to(self.weight_scale.device)
        elif self.weight_scale.dtype != torch.float32:
            self.weight_scale = torch.empty_like(self.weight_scale, dtype=torch.float32)
        return self

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  # nn.Linear's name
        """``x W^T + b`` in the input's dtype."""
        if torch.is_autocast_enabled(input.device.type):
            input = input.to(torch.get_autocast_dtype(input.device.type))  # noqa: A001
        out = _Product.apply(input, self.weight, self.weight_scale, self.blocks)
        return out if self.bias is None else out + self.bias.to(out.dtype)


def scale_grid(outputs: int, inputs: int, blocks: tuple[int, int] | None) -> tuple[int, int]:
    """Shape of a weight's scales."""
    return (outputs, 1) if blocks is None else (-(-outputs // blocks[0]), -(-inputs // blocks[1]))


class _Product(torch.autograd.Function):
    """Both directions dequantize, so that no 16-bit weight waits for the backward."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, blocks: tuple[int, int] | None
    ) -> torch.Tensor:
        ctx.save_for_backward(codes, scale)
        ctx.blocks = blocks
        return F.linear(x, _values(codes, scale, blocks, x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        codes, scale = ctx.saved_tensors
        return gradients[0] @ _values(codes, scale, ctx.blocks, gradients[0].dtype), None, None, None


def _values(
    codes: torch.Tensor, scale: torch.Tensor, blocks: tuple[int, int] | None, dtype: torch.dtype
) -> torch.Tensor:
    out = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    dequantize(RowScaled(codes, scale if blocks else scale.view(-1), dtype, blocks), out)
    return out


class Fp8Config(QuantizationConfigMixin):
    """What transformers is told.

    Args:
        compute_dtype: see `Fp8Linear`; its name in torch.
    """

    def __init__(self, compute_dtype: str = "bfloat16") -> None:
        self.quant_method = METHOD  # type: ignore[assignment]  # transformers' extensions use plain names
        self.compute_dtype = compute_dtype


class Fp8Layers(HfQuantizer):
    """What the quantizers that fill `Fp8Linear` have in common."""

    requires_calibration = False

    @property
    def converted(self) -> tuple[str, ...]:
        """Parts of a layer that come in other shapes or types than they are kept in."""
        return ("weight",)

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        """Whether this is such a part of one of our layers."""
        owner, _, own = param_name.rpartition(".")
        return own in self.converted and isinstance(model.get_submodule(owner), Fp8Linear)

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """No: other programs do not know the layout under our name."""
        return False

    @property
    def is_trainable(self) -> bool:
        """Adapters are."""
        return True


def require_codes(model: Any) -> None:
    """Every layer in 8 bits got its weight, and all of it: transformers looks at neither where it converts.

    Raises:
        ModelError: naming the first that did not.
    """
    for name, module in model.named_modules():
        if not isinstance(module, Fp8Linear):
            continue
        shape, there = (module.out_features, module.in_features), module.weight.dtype == torch.uint8
        if not there or tuple(module.weight.shape) != shape:
            raise ModelError(
                f"{name}.weight",
                f"{' x '.join(map(str, module.weight.shape))} codes" if there else "the checkpoint has none",
                f"This layer has {shape[0]} x {shape[1]} in 8 bits.",
                "Check the checkpoint's files, or name the original 16-bit model.",
            )


class Fp8Quantizer(Fp8Layers):
    """Linear layers become `Fp8Linear` before weights are read, and each weight is quantized when it is."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.broken: list[str] = []
        """Weights that are not finite; found where transformers would swallow an error."""

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        dtype = getattr(torch, self.quantization_config.compute_dtype)  # type: ignore[attr-defined]
        kept = self.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
        for name, module in list(model.named_modules()):
            if type(module) is nn.Linear and not any(name == each or name.endswith(f".{each}") for each in kept):
                made = Fp8Linear(module.in_features, module.out_features, module.bias is not None, dtype)
                model.set_submodule(name, made)

    def get_quantize_ops(self) -> ConversionOps:
        """What a weight goes through."""
        return _Quantize(self.broken)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        if self.broken:
            raise ModelError(
                self.broken[0],
                "it holds NaN or infinity",
                "Weights are quantized by the largest value of a row.",
                "Check the checkpoint; without load_in_fp8 it can be loaded and looked at.",
            )
        require_codes(model)
        return model


class _Quantize(ConversionOps):
    def __init__(self, broken: list[str]) -> None:
        self.broken = broken

    def convert(self, input_dict: dict[str, Any], **kwargs: Any) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        for name, value in input_dict.items():
            weight = value[0] if isinstance(value, list) else value
            if not weight.isfinite().all():
                self.broken.append(name)
            eight = quantize(weight)
            found[name] = eight.codes
            found[f"{name}_scale"] = eight.scale[:, None]
        return found


def fp8_config(compute_dtype: str) -> Fp8Config:
    """The ``quantization_config`` of 8-bit floats; makes its name known to transformers.

    Args:
        compute_dtype: see `Fp8Linear`.
    """
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(METHOD)(Fp8Config)
        register_quantizer(METHOD)(Fp8Quantizer)
    return Fp8Config(compute_dtype)
