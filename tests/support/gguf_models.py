"""GGUF files of tiny models of every family and type, as llama.cpp's converter would write them.

Names come from the `gguf` package's own table, so that they are independent of what is tested.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

ARCHS = {"llama": "llama", "mistral": "llama", "gemma3_text": "gemma3"}
BASE: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def model(model_type: str, **changes: Any) -> Any:
    """A random model whose norms and biases are no ones and zeros."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**{**BASE, **changes})).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
            # Values that every type of 16 bits holds: what a file keeps can then be compared bit by bit.
            parameter.copy_((parameter * 64).round().clamp(-127, 127) / 64)
    return made


def write_model(
    path: Path,
    made: Any,
    tokenizer: Any = None,
    *,
    kind: str = "F32",
    fields: Mapping[str, Any] | None = None,
    extra: Mapping[str, np.ndarray] | None = None,
    pre: str = "gpt-2",
) -> dict[str, np.ndarray]:
    """Write a model.

    Args:
        path: the file.
        made: the model.
        tokenizer: a byte-level BPE; None: one token per row, no merges.
        kind: the type of its matrices.
        fields: more metadata, or other; None leaves a field out.
        extra: more tensors.
        pre: what cuts text.

    Returns:
        Every tensor as the file has it, dequantized, by its name there.
    """
    import gguf

    config = made.config
    arch = ARCHS.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(path, arch)
    for name, value in {**_fields(config, arch), **_vocabulary(config, tokenizer, pre), **(fields or {})}.items():
        if value is not None:
            _add(writer, name, value)
    number = next(each for each, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    written: dict[str, np.ndarray] = {}
    for name, tensor in made.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        own = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert own is not None, name
        written[own] = _put(writer, own, _in_pairs(name, tensor.float().numpy(), config, arch), kind)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written


def _put(writer: Any, name: str, values: np.ndarray, kind: str) -> np.ndarray:
    import gguf

    from hasten.export.gguf.encoders import encode

    number = gguf.GGMLQuantizationType[kind]
    if values.ndim == 1 or number == gguf.GGMLQuantizationType.F32:
        writer.add_tensor(name, values)
        return values
    if number == gguf.GGMLQuantizationType.F16:
        writer.add_tensor(name, values.astype(np.float16))
        return values.astype(np.float16).astype(np.float32)
    raw = encode(values, number)
    writer.add_tensor(name, raw, raw_dtype=number)
    return gguf.quants.dequantize(raw, number)


def _in_pairs(name: str, values: np.ndarray, config: Any, arch: str) -> np.ndarray:
    if arch == "gemma3":
        return values + 1 if name.endswith("norm.weight") else values
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2], 0)
    if arch != "llama" or not heads:
        return values
    return np.ascontiguousarray(values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape))


def _fields(config: Any, arch: str) -> dict[str, Any]:
    rope = config.rope_parameters
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    wide = width * config.num_attention_heads != config.hidden_size
    fields: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": float(rope.get("full_attention", rope)["rope_theta"]),
        "vocab_size": config.vocab_size if arch == "llama" else None,
        "rope.dimension_count": width if arch in ("llama", "phi3") else None,
        "attention.key_length": width if wide else None,
        "attention.value_length": width if wide else None,
        "attention.sliding_window": (config.sliding_window or 0) if arch in ("phi3", "gemma3") else None,
        "rope.scaling.original_context_length": getattr(config, "original_max_position_embeddings", None),
    }
    return {f"{arch}.{name}": value for name, value in fields.items()}


def _vocabulary(config: Any, tokenizer: Any, pre: str) -> dict[str, Any]:
    fields: dict[str, Any] = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre}
    if tokenizer is None:
        fields |= {
            "tokenizer.ggml.tokens": [*"abc", *(f"t{number}" for number in range(4, config.vocab_size)), "ab"],
            "tokenizer.ggml.merges": ["a b"],
            "tokenizer.ggml.token_type": [1] * config.vocab_size,
        }
    else:
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        vocabulary = tokenizer.get_vocab()
        rows = range(config.vocab_size)
        texts = {number: text for text, number in vocabulary.items()}
        added = {each["id"]: 3 if each["special"] else 4 for each in backend["added_tokens"]}
        fields |= {
            "tokenizer.ggml.tokens": [texts.get(number, f"[PAD{number}]") for number in rows],
            "tokenizer.ggml.token_type": [added.get(number, 1 if number in texts else 5) for number in rows],
            "tokenizer.ggml.merges": [" ".join(pair) for pair in backend["model"]["merges"]],
            "tokenizer.chat_template": tokenizer.chat_template,
        }
    ends = {"bos": config.bos_token_id, "eos": config.eos_token_id, "padding": config.pad_token_id}
    return fields | {f"tokenizer.ggml.{name}_token_id": number for name, number in ends.items()}


def _add(writer: Any, name: str, value: Any) -> None:
    from gguf import GGUFValueType as Type

    kinds = {str: Type.STRING, bool: Type.BOOL, int: Type.UINT32, float: Type.FLOAT32}
    if isinstance(value, list):
        inner = {str: Type.STRING, int: Type.INT32, float: Type.FLOAT32}[type(value[0])]
        writer.add_key_value(name, value, Type.ARRAY, inner)
    else:
        writer.add_key_value(name, value, kinds[type(value)])
