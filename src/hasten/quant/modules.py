"""From chosen codes to bitsandbytes' own modules, inside a model that transformers saves and loads as any 4-bit one.

transformers knows two kinds of projections in such a model: 4-bit ones, and those that `llm_int8_skip_modules` names,
which are left alone. There is nothing between; bitsandbytes' 8-bit modules cannot stand in one model with them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hasten.errors import MissingPackageError
from hasten.loading.four_bit import keep_trainable
from hasten.quant.nf4 import Nf4


def require_bitsandbytes() -> None:
    """Refuse to begin what could not be finished.

    Raises:
        MissingPackageError: bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingPackageError(
            "hasten quantize",
            "bitsandbytes is not installed",
            "4-bit storage is bitsandbytes' NF4 format.",
            'Run `pip install "hasten[bnb]"`.',
        )


def to_bitsandbytes(model: Any, weights: Mapping[str, Nf4], dtype: torch.dtype) -> None:
    """Replace projections by 4-bit modules, and say so in the model's configuration; all else becomes `dtype`.

    Args:
        model: changed in place.
        weights: for the name of each projection, what it becomes.
        dtype: of what stays in 16 bit, and of the values that 4-bit modules give.
    """
    from transformers.quantizers.auto import AutoHfQuantizer

    for name, weight in weights.items():
        plain = model.get_submodule(name)
        model.set_submodule(name, _linear(plain, weight.to(plain.weight.device), dtype))
    keep_trainable(model)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    skipped = sorted(
        name for name, module in model.named_modules() if type(module) is nn.Linear and name not in weights
    )
    config = _config(skipped, dtype)
    model.config.dtype = dtype
    model.config.quantization_config = config
    model.hf_quantizer = AutoHfQuantizer.from_config(config, pre_quantized=True)
    model.is_loaded_in_4bit = True
    model.is_quantized = True
    model.quantization_method = config.quantization_method()


def _linear(plain: nn.Linear, weight: Nf4, dtype: torch.dtype) -> nn.Module:
    import bitsandbytes.nn

    parts: Any = bitsandbytes.nn  # its annotations leave out what its own loader passes
    made = parts.Linear4bit(
        plain.in_features,
        plain.out_features,
        bias=plain.bias is not None,
        compute_dtype=dtype,
        compress_statistics=True,
        quant_type="nf4",
        device="meta",
    )
    made.weight = parts.Params4bit(
        weight.packed(),
        requires_grad=False,
        quant_state=weight.state(dtype),
        blocksize=weight.block,
        compress_statistics=True,
        quant_type="nf4",
        module=made,
        bnb_quantized=True,
    )
    made.quant_state = made.weight.quant_state
    made.bias = plain.bias
    return made.train(plain.training)


def _config(skipped: Sequence[str], dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(skipped),
    )
