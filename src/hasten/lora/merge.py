"""The adapter folded into plain weights: W + scale * B A for every adapted module, everything else as it was.

The live model is not changed: merged tensors are made one at a time, so a run can merge, look, and go on training.
Weights that were kept in 4 or 8 bits are merged as the dequantized values that the adapter was trained against, or as
the 16-bit weights that those were made from (`hasten.lora.originals`). What an adapter began with to make up for 4 bits
(`hasten.lora.loftq`) is left out of the latter.
"""

from __future__ import annotations

from typing import Any

from hasten.errors import CapabilityError
from hasten.kernels.row_scaled.op import dequantize
from hasten.kernels.row_scaled.rows import RowScaled, row_scaled_of
from hasten.loading.beginning import added_at_first, beginning_of
from hasten.lora.originals import Originals

_OF_QUANTIZED = (
    ".weight.absmax", ".weight.quant_map", ".weight.nested_", ".weight.quant_state", ".weight_scale", ".weight_format",
    ".SCB",
)  # fmt: skip
"""Parts of the names of what stands beside a weight in 4 or 8 bits."""


def merged_state_dict(model: Any, dtype: Any = None, originals: Originals | None = None) -> dict[str, Any]:
    """The state dict of the base model with the adapter merged in.

    Args:
        model: a `PeftModel` with one active LoRA adapter, or a plain model, whose weights come back as they are.
        dtype: torch dtype of the result; None keeps each weight's own (float32, or the compute dtype of 4-bit weights).
        originals: what takes the place of 4-bit weights; None: their own values.

    Returns:
        Names as the plain base model has them -> CPU tensors. Sums are made in float32. Tied weights appear under both
        names and share memory.

    Raises:
        CapabilityError: an adapter is on a tied embedding or head, where merging changes both sides; or it is of a
            kind whose merge is not W + scale * B A (DoRA, LoRA bias, adapted parameters).
    """
    import torch

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    _refuse_other_kinds(base)
    eight = {id(module.weight): stored for module in base.modules() if (stored := row_scaled_of(module)) is not None}
    adapted = {name: module for name, module in base.named_modules() if hasattr(module, "get_delta_weight")}
    _refuse_tied(base, adapted)
    began = beginning_of(model)
    merged: dict[str, Any] = {}
    shared: dict[int, Any] = {}
    with torch.no_grad():
        for name, value in base.state_dict(keep_vars=True).items():
            plain = _plain_name(name)
            if plain is None:
                continue
            owner = plain.rpartition(".")[0]
            if id(value) not in shared:
                stored, module = eight.get(id(value)), adapted.get(owner)
                shared[id(value)] = _merge_one(value, stored, module, plain, dtype, originals, began)
            merged[plain] = shared[id(value)]
    return merged


def quantized_weights(model: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights that are kept in 4 or 8 bits, by the names that a plain model has for them."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    found = {
        plain: tuple(stored.shape)
        for name, module in base.named_modules()
        if (stored := row_scaled_of(module)) is not None and (plain := _plain_name(f"{name}.weight")) is not None
    }
    return weights_in_4_bits(model) | found


def weights_in_4_bits(model: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights that are kept in 4 bits, by the names that a plain model has for them."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return {
        plain: tuple(parameter.quant_state.shape)
        for name, parameter in base.named_parameters()
        if getattr(parameter, "quant_state", None) is not None and (plain := _plain_name(name)) is not None
    }


def _merge_one(
    value: Any,
    eight: RowScaled | None,
    module: Any,
    name: str,
    dtype: Any,
    originals: Originals | None,
    began: dict[str, Any] | None,
) -> Any:
    import torch

    weight = kept = _dequantized(value, eight)
    if originals is not None and kept is not value:
        weight = originals.weight(name, kept)
    is_weight = name.endswith(".weight")
    if module is not None and is_weight:
        total = weight.to(torch.float32)
        for adapter in module.active_adapters:
            if adapter in module.lora_A or adapter in module.lora_embedding_A:
                total = total + module.get_delta_weight(adapter).to(torch.float32)
        before = added_at_first(began, name.removesuffix(".weight"), module) if weight is not kept else None
        weight = (total if before is None else total - before).to(weight.dtype)
    if dtype is not None and weight.is_floating_point():
        weight = weight.to(dtype)
    return weight.detach().to("cpu").clone()


def _dequantized(value: Any, eight: RowScaled | None) -> Any:
    if eight is not None:
        import torch

        out = torch.empty(eight.shape, dtype=eight.dtype, device=eight.codes.device)
        dequantize(eight, out)
        return out
    state = getattr(value, "quant_state", None)
    if state is None:
        return value
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(value.data, state)


def _plain_name(name: str) -> str | None:
    """The name a plain model has for a tensor, or None for what exists only because of the adapter or of few bits."""
    if "lora_" in name or "original_module" in name:
        return None
    if any(marker in name for marker in _OF_QUANTIZED):
        return None
    return name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")


def _refuse_other_kinds(base: Any) -> None:
    from peft.tuners.lora.layer import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in base.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        if isinstance(module, LoraLayer) and type(module).__name__ != "ParamWrapper":
            odd = [name for name in module.active_adapters if name in module.lora_variant or module.lora_bias.get(name)]
            if not odd:
                continue
        raise CapabilityError(
            f"merge of '{name}'",
            f"{type(module).__name__}, with a variant (DoRA or the like), a LoRA bias or adapted parameters",
            "Only plain LoRA layers are merged.",
            "Save the adapter with save_method='lora'; PEFT and vLLM load it onto the base model.",
        )


def _refuse_tied(base: Any, adapted: dict[str, Any]) -> None:
    if not getattr(base.config, "tie_word_embeddings", False):
        return
    ends = {id(base.get_input_embeddings()), id(base.get_output_embeddings())}
    for name, module in adapted.items():
        if id(module) in ends:
            raise CapabilityError(
                f"merge of '{name}'",
                "its weight is tied to the other end of the model",
                "Merging would change both ends, although only one was trained.",
                "Save the adapter with save_method='lora', or train without an adapter on embeddings and head.",
            )
