"""GGUF files of random weights, with as much metadata as llama.cpp's quantizer reads: no tokenizer, no model needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFWriter

from hasten.export.gguf.encoders import Type
from hasten.export.gguf.mixes import Model, Tensor


@dataclass(frozen=True)
class Shape:
    """A model's shape."""

    arch: str = "llama"
    layers: int = 2
    width: int = 256
    mlp: int = 512
    heads: int = 8
    key_value_heads: int = 2
    experts: int = 0
    tied: bool = True
    vocabulary: int = 64

    @property
    def model(self) -> Model:
        return Model(self.layers, self.heads, self.key_value_heads, self.experts, self.arch)

    @property
    def tensors(self) -> list[Tensor]:
        """As llama.cpp names them; norms and routers too."""
        width, mlp, keys = self.width, self.mlp, self.width // self.heads * self.key_value_heads
        found = [Tensor("token_embd.weight", (self.vocabulary, width)), Tensor("output_norm.weight", (width,))]
        if not self.tied:
            found.append(Tensor("output.weight", (self.vocabulary, width)))
        for layer in range(self.layers):
            of_layer: dict[str, tuple[int, ...]] = {"attn_norm": (width,), "ffn_norm": (width,)}
            if self.arch == "phi3":
                of_layer |= {
                    "attn_qkv": (width + 2 * keys, width),
                    "ffn_up": (2 * mlp, width),
                    "ffn_down": (width, mlp),
                }
            else:
                of_layer |= {"attn_q": (width, width), "attn_k": (keys, width), "attn_v": (keys, width)}
            of_layer["attn_output"] = (width, width)
            if self.experts:
                of_layer["ffn_gate_inp"] = (self.experts, width)
                of_layer |= {f"ffn_{part}_exps": (self.experts, mlp, width) for part in ("gate", "up")}
                of_layer["ffn_down_exps"] = (self.experts, width, mlp)
            elif self.arch != "phi3":
                of_layer |= {"ffn_gate": (mlp, width), "ffn_up": (mlp, width), "ffn_down": (width, mlp)}
            found += [Tensor(f"blk.{layer}.{name}.weight", shape) for name, shape in of_layer.items()]
            if self.arch == "qwen2":
                found += [Tensor(f"blk.{layer}.attn_{part}.bias", (width if part == "q" else keys,)) for part in "qkv"]
        return found


def write(path: Path, shape: Shape, seed: int = 0) -> dict[str, np.ndarray]:
    """An F16 file as upstream's converter would write it (vectors and routers are F32), and its values."""
    random = np.random.default_rng(seed)
    writer = GGUFWriter(path, shape.arch)
    writer.add_file_type(1)
    writer.add_block_count(shape.layers)
    writer.add_context_length(128)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.mlp)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.key_value_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_vocab_size(shape.vocabulary)
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(2)
    values: dict[str, np.ndarray] = {}
    for tensor in shape.tensors:
        narrow = len(tensor.shape) > 1 and "ffn_gate_inp" not in tensor.name
        drawn = random.standard_normal(tensor.shape, dtype=np.float32) * random.lognormal(0, 0.5, tensor.shape[-1])
        values[tensor.name] = drawn.astype(np.float16 if narrow else np.float32)
        writer.add_tensor(tensor.name, values[tensor.name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def read(path: Path) -> dict[str, tuple[Type, np.ndarray]]:
    """Types and bytes of a file's tensors."""
    found = {}
    for tensor in GGUFReader(path).tensors:
        found[str(tensor.name)] = (tensor.tensor_type, np.array(tensor.data).view(np.uint8).reshape(-1))
    return found
