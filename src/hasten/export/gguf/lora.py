"""An adapter as a GGUF file of its own, for a base that is one already.

Two matrices for each adapted weight, by the weight's name and ``lora_a`` or ``lora_b``. llama.cpp scales all of them
by ``adapter.lora.alpha`` over a matrix's rank. So rank-stabilised adapters, whose scale is alpha over the rank's root,
say an alpha that is larger by that root, and where ranks or alphas differ by module, B takes the rest of the factor.

Shapes: R the rank, I inputs and O outputs of a weight.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from gguf import GGUFType, GGUFWriter
from safetensors import SafetensorError
from safetensors.torch import load_file

from hasten.errors import CapabilityError, ModelError
from hasten.export.gguf.encoders import Type, encode
from hasten.export.gguf.header import read_header, unfinished
from hasten.export.gguf.metadata import Value, typed
from hasten.export.gguf.source import Source, permuted
from hasten.export.weights import Weights
from hasten.files import storing
from hasten.loading.beginning import FILE as BEGINNING
from hasten.loading.source import begins_inside, read_json

_MATRIX = re.compile(r"^(?:base_model\.model\.)?(.+)\.lora_(A|B)(?:\.[^.]+)?\.weight$")
_KINDS = {"f32": Type.F32, "f16": Type.F16, "bf16": Type.BF16}


@dataclass(frozen=True)
class WrittenAdapter:
    """What the file holds."""

    path: Path
    bytes: int
    alpha: float
    """What it says; see the module."""
    tensors: tuple[str, ...]
    """Weights that it changes, by GGUF's names."""


def write_adapter(
    adapter: Path,
    base: Weights,
    path: Path,
    *,
    kind: Literal["f32", "f16", "bf16"] = "f32",
    facts: Mapping[str, Value] | None = None,
) -> WrittenAdapter:
    """Write a LoRA adapter as a GGUF file.

    Args:
        adapter: a folder with adapter_config.json and adapter_model.safetensors.
        base: the model that it was trained on; only its names and shapes are asked.
        path: the new file.
        kind: of the matrices.
        facts: metadata beyond the adapter's own.

    Raises:
        CapabilityError: the adapter has more than two matrices for a weight (DoRA, biases, whole modules), or adapts
            what llama.cpp cannot.
        ModelError: files are missing, or its matrices do not fit the base.
        StorageError: the file cannot be written; nothing is left behind.
    """
    config: Mapping[str, Any] = read_json(adapter / "adapter_config.json")
    _require_plain(config, adapter)
    pairs = _pairs(adapter)
    source = Source(base)
    names = {entry.name.removesuffix(".weight"): entry.tensor.name for entry in source.entries if not entry.parts}
    alpha = _alpha(config)
    writer = GGUFWriter(None, source.form.arch)
    writer.add_type(GGUFType.ADAPTER)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    writer.add_name(adapter.name)
    for key, value in (facts or {}).items():
        writer.kv_data[0][key] = typed(key, value)
    for module, (a_RI, b_OR) in pairs.items():
        if module not in names:
            raise _unfit(f"'{module}'", "no weight of the base that GGUF has by itself")
        shape = base.shapes[f"{module}.weight"]
        if (b_OR.shape[0], a_RI.shape[1]) != shape or a_RI.shape[0] != b_OR.shape[1]:
            found = f"matrices of {tuple(b_OR.shape)} and {tuple(a_RI.shape)} for a weight of {tuple(shape)}"
            raise ModelError(
                f"'{module}'", found, "An adapter fits the base that it was trained on.", "Name that base."
            )
        b_OR = b_OR.to(torch.float32) * (_scale(config, module, a_RI.shape[0]) / (alpha / a_RI.shape[0]))
        if source.form.permuted and module.endswith(("q_proj", "k_proj")):
            b_OR = permuted(b_OR, source.heads if module.endswith("q_proj") else source.key_value_heads)
        for end, matrix in (("lora_a", a_RI), ("lora_b", b_OR)):
            if not matrix.isfinite().all():
                raise ModelError(f"'{module}'", "it holds NaN or infinity", "It would answer nothing.", "Train again.")
            rows = encode(matrix.to(torch.float32).numpy(), _KINDS[kind])
            writer.add_tensor(f"{names[module]}.{end}", rows, raw_dtype=_KINDS[kind])
    with unfinished(path) as temporary, storing(path):
        writer.write_header_to_file(temporary)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        read_header(temporary)
        temporary.replace(path)
    return WrittenAdapter(path, path.stat().st_size, alpha, tuple(names[module] for module in pairs))


def _alpha(config: Mapping[str, Any]) -> float:
    """What the file says, so that over the rank it is peft's scale."""
    return float(config["lora_alpha"]) * (math.sqrt(config["r"]) if config.get("use_rslora") else 1.0)


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """What peft multiplies B A by."""
    own = next(
        (
            value
            for name, value in (config.get("alpha_pattern") or {}).items()
            if re.match(rf"(.*\.)?({name})$", module)
        ),
        config["lora_alpha"],
    )
    return float(own) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _pairs(adapter: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    file = adapter / "adapter_model.safetensors"
    if not file.is_file():
        rule = "An adapter's weights are safetensors."
        raise ModelError(str(file), "it is not there", rule, "Save the adapter again.")
    try:
        tensors = load_file(str(file))
    except SafetensorError as cause:
        raise ModelError(str(file), f"damaged ({cause})", "Its weights are read.", "Copy it again.") from cause
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.endswith(".base_layer.weight"):  # peft saves the base's own weight beside an adapted head's
            continue
        found = _MATRIX.match(name)
        if found is None or tensor.ndim != 2:
            raise _unfit(f"'{name}'", "not one of two matrices")
        halves.setdefault(found[1], {})[found[2]] = tensor
    for module, found in halves.items():
        if set(found) != {"A", "B"}:
            rule = "Every adapted weight has two matrices."
            raise ModelError(f"'{module}'", "one matrix is missing", rule, "Save the adapter again.")
    return {module: (found["A"], found["B"]) for module, found in halves.items()}


def _require_plain(config: Mapping[str, Any], adapter: Path) -> None:
    for name in ("modules_to_save", "use_dora", "trainable_token_indices", "target_parameters", "lora_bias"):
        if config.get(name):
            raise _unfit(f"{name} of '{adapter}'", repr(config[name]))
    if config.get("peft_type") != "LORA":
        raise _unfit(f"'{adapter}'", f"an adapter of kind {config.get('peft_type')}")
    if begins_inside(config.get("init_lora_weights")) or (adapter / BEGINNING).exists():
        raise CapabilityError(
            f"'{adapter}'",
            "it began inside the weights of its own base",
            "On another base it means something else.",
            "Save it as a plain adapter (save_method='lora'), or merge it and export the merged model.",
        )


def _unfit(subject: str, value: str) -> CapabilityError:
    return CapabilityError(
        subject,
        value,
        "A GGUF adapter has two matrices for each weight that it changes, and nothing else.",
        "Merge it instead, and export the merged model.",
    )
