"""GGUF files of tiny models with experts, as llama.cpp's converters of today and of early 2024 write them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from support import gguf_models

ARCHS = {"mixtral": "llama", "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe"}
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 3, "num_experts_per_tok": 2},
    "qwen2_moe": {
        "moe_intermediate_size": 256, "shared_expert_intermediate_size": 768, "num_experts": 3,
        "num_experts_per_tok": 2,
    },
    "qwen3_moe": {
        "head_dim": 128, "moe_intermediate_size": 256, "num_experts": 3, "num_experts_per_tok": 2,
        "norm_topk_prob": True,
    },
}  # fmt: skip
_INSIDE = {
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.shared_expert_gate.weight": "ffn_gate_inp_shexp.weight",
    "mlp.shared_expert.gate_proj.weight": "ffn_gate_shexp.weight",
    "mlp.shared_expert.up_proj.weight": "ffn_up_shexp.weight",
    "mlp.shared_expert.down_proj.weight": "ffn_down_shexp.weight",
    "mlp.experts.down_proj": "ffn_down_exps.weight",
}


def model(model_type: str, **changes: Any) -> Any:
    """A random model of a family, 256 values wide."""
    return gguf_models.model(model_type, **{**FAMILIES[model_type], **changes})


def write_model(
    path: Path,
    made: Any,
    tokenizer: Any = None,
    *,
    kind: str = "F32",
    split: bool = False,
    fields: Mapping[str, Any] | None = None,
    without: tuple[str, ...] = (),
    kinds: Mapping[str, str] | None = None,
) -> dict[str, np.ndarray]:
    """Write a model.

    Args:
        path: the file.
        made: the model.
        tokenizer: a byte-level BPE; None: one token per row, no merges.
        kind: the type of its matrices; routers are float32.
        split: a tensor for each expert, as files of early 2024 have them.
        fields: more metadata, or other; None leaves a field out.
        without: tensors to leave out.
        kinds: of tensors whose names contain these, other types.

    Returns:
        Every tensor as the file has it, dequantized, by its name there.
    """
    import gguf

    config, arch = made.config, ARCHS[made.config.model_type]
    writer = gguf.GGUFWriter(path, arch)
    said = {**gguf_models._fields(config, arch), **gguf_models._vocabulary(config, tokenizer, "gpt-2")}
    for name, value in {**said, **_fields(config, arch), **(fields or {})}.items():
        if value is not None:
            gguf_models._add(writer, name, value)
    written: dict[str, np.ndarray] = {}
    for name, values in _tensors(made, arch, split):
        if name not in without:
            vector = "_inp" in name or values.ndim == 1
            other = next((each for part, each in (kinds or {}).items() if part in name), kind)
            written[name] = gguf_models._put(writer, name, values, "F32" if vector else other)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written


def _tensors(made: Any, arch: str, split: bool) -> list[tuple[str, np.ndarray]]:
    import gguf

    number = next(each for each, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(number, made.config.num_hidden_layers)
    found: list[tuple[str, np.ndarray]] = []
    for name, tensor in made.state_dict().items():
        values, inside = tensor.float().numpy(), name.split(".", 3)[-1]
        block = f"blk.{name.split('.')[2]}." if name.startswith("model.layers.") else ""
        if inside == "mlp.experts.gate_up_proj":
            gate, up = np.split(values, 2, axis=1)
            found += [(f"{block}ffn_gate_exps.weight", gate), (f"{block}ffn_up_exps.weight", up)]
        elif inside in _INSIDE:
            found.append(
                (block + _INSIDE[inside], values[0] if inside.endswith("shared_expert_gate.weight") else values)
            )
        else:
            own = names.get_name(name, try_suffixes=(".weight", ".bias"))
            assert own is not None, name
            found.append((own, gguf_models._in_pairs(name, values, made.config, arch)))
    found = [(name, np.ascontiguousarray(values)) for name, values in found]
    if not split:
        return found
    return [
        (name.replace("_exps.", f".{number}.") if "_exps." in name else name, each)
        for name, values in found
        for number, each in (enumerate(values) if "_exps." in name else [(0, values)])
    ]


def _fields(config: Any, arch: str) -> dict[str, Any]:
    fields = {
        "expert_count": config.num_local_experts if arch == "llama" else config.num_experts,
        "expert_used_count": config.num_experts_per_tok,
        "expert_feed_forward_length": getattr(config, "moe_intermediate_size", None),
        "expert_shared_feed_forward_length": getattr(config, "shared_expert_intermediate_size", None),
    }
    return {f"{arch}.{name}": value for name, value in fields.items()}
