"""Which tensor gets which type in a file that is named after one (Q4_K_M and its kind).

The rules are those of llama.cpp's `llama-quantize`, so that a file is as large as everybody expects one of its name,
and holds the same bytes. In words: the head (or the embedding, where it serves as one) has 6 bits; values and MLP
outputs, whose errors cost most, have more bits in the first and last eighth of the layers and in every third between
(`M`), or in the first layers alone (`S`); what does not fit a type's blocks of 256 falls back to one with blocks of 32.
"""

from __future__ import annotations

import re
from collections import Counter
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
    Type.Q2_K: Type.Q4_0, Type.Q3_K: Type.Q4_0, Type.IQ4_XS: Type.IQ4_NL,
    Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0,
}  # fmt: skip
"""What takes the place of a type whose blocks of 256 do not fit."""
_ROLES = {"output.weight": "head", "token_embd.weight": "embedding"}
_PARTS = {
    "attn_qkv.weight": "values", "attn_kv_b.weight": "values", "attn_v.weight": "values", "attn_k.weight": "keys",
    "attn_output.weight": "attention outputs", "ffn_down": "mlp outputs",
}  # fmt: skip
"""What a tensor is to the rules, by a part of its name; matrices that hold values and others count as values."""
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
    arch: str = "llama"
    """``general.architecture``."""

    @property
    def shared(self) -> int:
        """Query heads that share a key head."""
        return self.heads // max(self.key_value_heads, 1)

    @property
    def is_70b(self) -> bool:
        """Whether llama.cpp takes it for one of 70 billion weights: it goes by the number of layers."""
        return self.layers == 80 and (self.arch == "qwen2" or (self.arch == "llama" and self.shared > 1))


@dataclass(frozen=True)
class Chosen:
    """What one tensor gets."""

    kind: Type
    instead_of: Type | None = None
    """The type that does not fit its rows."""


def named(name: str, *more: str) -> str:
    """A file type's name in lower case, its short form written out.

    Args:
        name: as it was given.
        more: names that are allowed besides.

    Raises:
        ConfigError: there is none of that name.
    """
    known = (*BASE, *more)
    wanted = SHORT.get(name.lower(), name.lower())
    if wanted not in known:
        remedy = did_you_mean(wanted, known, "q4_k_m is a good choice.")
        raise ConfigError("gguf type", repr(name), f"Known: {', '.join(known)}.", remedy)
    return wanted


def choose(tensors: Iterable[Tensor], name: str, model: Model, *, importance: bool = False) -> dict[str, Chosen]:
    """The type of every tensor.

    Args:
        tensors: all of the file's, in any order.
        name: from `named`.
        model: whose they are.
        importance: whether an importance matrix is used.
    """
    tensors = list(tensors)
    if name in _PLAIN:
        return {each.name: Chosen(BASE[name] if is_quantized(each) else Type.F32) for each in tensors}
    has_head = any(each.name == "output.weight" for each in tensors)
    place = Counter[str]()  # the rules count the tensors of a kind, not layers
    of_values = sum(_role(each.name) == "values" for each in tensors if is_quantized(each))
    chosen = dict.fromkeys((each.name for each in tensors), Chosen(Type.F32))
    for tensor in sorted(filter(is_quantized, tensors), key=_in_order):
        role = _role(tensor.name)
        if role == "head" or (role == "embedding" and not has_head):
            kind = _head(name, tensor.shape[-1])
        elif role == "values":
            kind = _values(name, model, place[role], of_values)
        elif role == "mlp outputs":
            at = _layer(tensor.name) if model.experts > 1 else place[role]
            kind = _mlp_outputs(name, model.layers, at, importance)
        elif role == "keys":
            kind = Type.Q8_0 if model.experts == 8 else BASE[name]
        elif role == "attention outputs":
            kind = _attention_outputs(name, model.experts)
        else:
            kind = BASE[name]
        place[role] += 1
        chosen[tensor.name] = _fitting(kind, tensor.shape[-1])
    return chosen


def is_quantized(tensor: Tensor) -> bool:
    """Whether a tensor gets the file's type: not vectors, norms and routers, which are few bytes, and all count."""
    wide = len(tensor.shape) < 2 or "_norm.weight" in tensor.name or "ffn_gate_inp.weight" in tensor.name
    return tensor.name.endswith("weight") and not wide


def _layer(name: str) -> int:
    found = _LAYER.match(name)
    return int(found[1]) if found else -1


def _in_order(tensor: Tensor) -> tuple[int, str]:
    return _layer(tensor.name), tensor.name


def _role(name: str) -> str:
    if name in _ROLES:
        return _ROLES[name]
    return next((role for part, role in _PARTS.items() if part in name), "")


def _fitting(kind: Type, width: int) -> Chosen:
    if width % GGML_QUANT_SIZES[kind][0] == 0:
        return Chosen(kind)
    narrower = _NARROWER.get(kind)
    if narrower is not None and width % GGML_QUANT_SIZES[narrower][0] == 0:
        return Chosen(narrower, instead_of=kind)
    return Chosen(Type.F16, instead_of=kind)


def _head(name: str, width: int) -> Type:
    base = BASE[name]
    return Type.Q8_0 if base == Type.Q8_0 or width % GGML_QUANT_SIZES[base][0] else Type.Q6_K


def _values(name: str, model: Model, place: int, of: int) -> Type:
    kind = BASE[name]
    if name == "q2_k":
        kind = Type.Q4_K if model.shared >= 4 else Type.Q3_K
    elif name == "q3_k_m":
        kind = Type.Q5_K if place < 2 else Type.Q4_K
    elif name == "q3_k_l" or (name in ("iq4_nl", "iq4_xs") and model.shared >= 4):
        kind = Type.Q5_K
    elif name in ("q4_k_m", "q5_k_m") and _more(place, of):
        kind = Type.Q6_K
    elif name == "q4_k_s" and place < 4:
        kind = Type.Q5_K
    if model.is_70b and kind in (Type.Q3_K, Type.Q4_K):  # eight heads share one: few bytes
        kind = Type.Q5_K
    return Type.Q8_0 if model.experts == 8 else kind


def _attention_outputs(name: str, experts: int) -> Type:
    if experts == 8:
        five = ("q2_k", "q3_k_s", "q3_k_m", "q4_k_s", "q4_k_m", "iq4_nl", "iq4_xs")
        return Type.Q5_K if name in five else BASE[name]
    return {"q2_k": Type.Q3_K, "q3_k_m": Type.Q4_K, "q3_k_l": Type.Q5_K}.get(name, BASE[name])


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
