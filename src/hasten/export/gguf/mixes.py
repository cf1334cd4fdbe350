"""Which tensor gets which type in a file that is named after one (Q4_K_M and its kind).

The rules are those of llama.cpp's `llama-quantize`, so that a file is as large as everybody expects one of its name,
and holds the same bytes. In words: the head (or the embedding, where it serves as one) has 6 bits; values and MLP
outputs, whose errors cost most, have more bits in the first and last eighth of the layers and in every third between
(`M`), or in the first layers alone (`S`); what does not fit a type's blocks of 256 falls back to one with blocks of 32.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gguf import GGML_QUANT_SIZES

from hasten.errors import ConfigError, did_you_mean
from hasten.export.gguf.encoders import Type

BASE: Mapping[str, Type] = {
    "f32": Type.F32, "f16": Type.F16, "bf16": Type.BF16,
    "q8_0": Type.Q8_0, "q4_0": Type.Q4_0, "q4_1": Type.Q4_1, "q5_0": Type.Q5_0, "q5_1": Type.Q5_1,
    "q2_k": Type.Q2_K, "q3_k_s": Type.Q3_K, "q3_k_m": Type.Q3_K, "q3_k_l": Type.Q3_K,
    "q4_k_s": Type.Q4_K, "q4_k_m": Type.Q4_K, "q5_k_s": Type.Q5_K, "q5_k_m": Type.Q5_K, "q6_k": Type.Q6_K,
    "iq4_nl": Type.IQ4_NL, "iq4_xs": Type.IQ4_XS,
}  # fmt: skip
"""The type that most tensors of a file have, by the file's name."""
SHORT = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}
_PLAIN = ("f32", "f16", "bf16")
_NARROWER = {
    Type.Q2_K: Type.IQ4_NL, Type.Q3_K: Type.IQ4_NL, Type.IQ4_XS: Type.IQ4_NL,
    Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0,
}  # fmt: skip
"""What takes the place of a type whose blocks of 256 do not fit."""
_LAYER = re.compile(r"^blk\.(\d+)\.")


@dataclass(frozen=True)
class Tensor:
    """One tensor of the file."""

    name: str
    """In GGUF's words, e.g. ``blk.0.attn_v.weight``."""
    shape: tuple[int, ...]
    """As torch has it: rows first, a row's width last."""


@dataclass(frozen=True)
class Model:
    """What the rules ask of a model."""

    layers: int
    heads: int
    key_value_heads: int
    experts: int = 0

    @property
    def shared(self) -> int:
        """Query heads that share a key head."""
        return self.heads // max(self.key_value_heads, 1)


@dataclass(frozen=True)
class Chosen:
    """What one tensor gets."""

    kind: Type
    instead_of: Type | None = None
    """The type that does not fit its rows."""


def named(name: str) -> str:
    """A file type's name in lower case, its short form written out.

    Raises:
        ConfigError: there is none of that name.
    """
    wanted = SHORT.get(name.lower(), name.lower())
    if wanted not in BASE:
        remedy = did_you_mean(wanted, BASE, "q4_k_m is a good choice.")
        raise ConfigError("gguf type", repr(name), f"Known: {', '.join(BASE)}.", remedy)
    return wanted


def choose(tensors: Iterable[Tensor], name: str, model: Model, *, importance: bool = False) -> dict[str, Chosen]:
    """The type of every tensor.

    Args:
        tensors: in the order of their layers.
        name: from `named`.
        model: whose they are.
        importance: whether an importance matrix is used.
    """
    tensors = list(tensors)
    has_head = any(tensor.name == "output.weight" for tensor in tensors)
    chosen: dict[str, Chosen] = {}
    values = 0  # attn_v tensors so far: the rules count them, not layers
    for tensor in tensors:
        if not _is_quantized(tensor):
            chosen[tensor.name] = Chosen(Type.F32 if _stays_wide(tensor) or name == "f32" else BASE[name])
            continue
        if name in _PLAIN:
            chosen[tensor.name] = Chosen(BASE[name])
            continue
        found = _LAYER.match(tensor.name)
        layer = int(found[1]) if found else 0
        kind = _mixed(tensor, name, model, layer, values, importance, has_head)
        values += tensor.name.endswith("attn_v.weight")
        chosen[tensor.name] = _fitting(kind, tensor.shape[-1])
    return chosen


def _is_quantized(tensor: Tensor) -> bool:
    return tensor.name.endswith("weight") and not _stays_wide(tensor)


def _stays_wide(tensor: Tensor) -> bool:
    """Vectors, norms and routers: few bytes, and all of them count."""
    return len(tensor.shape) < 2 or "_norm" in tensor.name or tensor.name.endswith("ffn_gate_inp.weight")


def _fitting(kind: Type, width: int) -> Chosen:
    if width % GGML_QUANT_SIZES[kind][0] == 0:
        return Chosen(kind)
    narrower = _NARROWER.get(kind)
    if narrower is not None and width % GGML_QUANT_SIZES[narrower][0] == 0:
        return Chosen(narrower, instead_of=kind)
    return Chosen(Type.F16, instead_of=kind)


def _mixed(tensor: Tensor, name: str, model: Model, layer: int, values: int, importance: bool, has_head: bool) -> Type:
    own = tensor.name.rpartition("blk.")[2].partition(".")[2] or tensor.name
    base = BASE[name]
    if tensor.name == "output.weight" or (tensor.name == "token_embd.weight" and not has_head):
        if tensor.shape[-1] % 256:
            return Type.Q8_0
        return base if base == Type.Q8_0 else Type.Q6_K
    if own == "attn_v.weight":
        return _values(name, model, values)
    if own == "attn_k.weight":
        return Type.Q8_0 if model.experts == 8 else base
    if own == "attn_output.weight":
        if model.experts == 8:
            five = ("q2_k", "q3_k_s", "q3_k_m", "q4_k_s", "q4_k_m", "iq4_nl", "iq4_xs")
            return Type.Q5_K if name in five else base
        return {"q2_k": Type.Q3_K, "q3_k_m": Type.Q4_K, "q3_k_l": Type.Q5_K}.get(name, base)
    if own == "attn_qkv.weight":
        more = {"q3_k_m": Type.Q4_K, "q3_k_l": Type.Q4_K, "q4_k_m": Type.Q5_K, "q5_k_m": Type.Q6_K}
        return more.get(name, base)
    if own.startswith("ffn_down"):
        return _mlp_outputs(name, model.layers, layer, importance)
    return base


def _values(name: str, model: Model, place: int) -> Type:
    base = BASE[name]
    kind = base
    if name == "q2_k":
        kind = Type.Q4_K if model.shared >= 4 else Type.Q3_K
    elif name == "q3_k_m":
        kind = Type.Q5_K if place < 2 else Type.Q4_K
    elif name == "q3_k_l" or (name in ("iq4_nl", "iq4_xs") and model.shared >= 4):
        kind = Type.Q5_K
    elif name in ("q4_k_m", "q5_k_m") and _more(place, model.layers):
        kind = Type.Q6_K
    elif name == "q4_k_s" and place < 4:
        kind = Type.Q5_K
    if model.layers == 80 and model.shared == 8 and kind in (Type.Q3_K, Type.Q4_K):  # 70B: eight heads share one
        kind = Type.Q5_K
    return Type.Q8_0 if model.experts == 8 else kind


def _mlp_outputs(name: str, layers: int, layer: int, importance: bool) -> Type:
    base, first = BASE[name], layer < layers // 8
    if name == "q2_k":
        return Type.Q3_K
    if name == "q3_k_m":
        return Type.Q5_K if layer < layers // 16 else Type.Q4_K
    if name == "q3_k_l":
        return Type.Q5_K
    if name in ("q4_k_m", "q5_k_m"):
        return Type.Q6_K if _more(layer, layers) else base
    if first and (name == "q4_k_s" or (name in ("iq4_nl", "iq4_xs") and not importance)):
        return Type.Q5_K
    if first and importance and name in ("q4_0", "q5_0"):
        return Type.Q4_1 if name == "q4_0" else Type.Q5_1
    return base


def _more(place: int, of: int) -> bool:
    """The first and the last eighth, and every third between."""
    return place < of // 8 or place >= 7 * of // 8 or (place - of // 8) % 3 == 2
