"""A model's tensors by GGUF's names, one at a time.

Nothing is loaded: a tensor is read when it is written. Names are the `gguf` package's; what a family does to values on
the way is in its descriptor. Experts that lie in matrices of their own become one tensor of three dimensions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

from hasten.errors import CapabilityError, ModelError
from hasten.export.gguf.mixes import Model, Tensor
from hasten.export.gguf.rope import llama3_factors, long_factors, rope_of
from hasten.export.weights import Weights
from hasten.families.base import Family, Gguf, all_families, family_of

_LEFT_OUT = (".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq")
_EXPERT = re.compile(r"(\.experts)\.(\d+)(\.)")
_SINGLE_ROW = ".ffn_gate_inp_shexp.weight"
"""A matrix of one row in the checkpoint, a vector in the file."""
_LAYER = re.compile(r"^blk\.(\d+)\.")
_GEMMA_27B_LAYERS = 62
"""By their number llama.cpp knows the one whose attention is not scaled by the width of its heads."""
_GEMMA_SCALAR = 256
"""Of a configuration without ``query_pre_attn_scalar``."""
BLOCK = 2**24
"""Values that are in memory as float32 at once."""


@dataclass(frozen=True)
class Entry:
    """One tensor of the file."""

    name: str
    """In the checkpoint; of experts, the first's; of what the checkpoint does not have, the file's own."""
    tensor: Tensor
    """As the GGUF file has it."""
    parts: tuple[str, ...] = ()
    """Experts' names in the checkpoint, in order."""


class Source:
    """Weights by GGUF's names.

    Args:
        weights: the model.

    Raises:
        CapabilityError: the family has no GGUF form here, or llama.cpp does not have what config.json asks for.
    """

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        config = weights.config
        family = family_of(str(config.get("model_type", "")))
        if family.gguf is None:
            raise _without_form(str(config.get("model_type", "")), family)
        self.form: Gguf = family.gguf
        for name, value in self.form.granted.items():
            if bool(config.get(name)) != value:
                rule = f"llama.cpp takes for granted that it is {value}."
                remedy = "Export it to Hugging Face or vLLM."
                raise CapabilityError(f"'{name}' of config.json", str(config.get(name)), rule, remedy)
        self.layers = int(config["num_hidden_layers"])
        self.heads = int(config["num_attention_heads"])
        self.key_value_heads = int(config.get("num_key_value_heads") or self.heads)
        width = self.form.head_width or int(config["hidden_size"]) // self.heads
        self.head_width = int(config.get("head_dim") or width)
        self.experts = int(config.get("num_local_experts") or config.get("num_experts") or 0)
        self.rope = rope_of(config)
        _require_positions(self.rope.kind, self.form)
        if self.rope.kind == "longrope":
            self.rope.need("long_factor")  # a file without factors would be one without scaling
        _require_attention_scale(config, self)
        self.rotated = int(float(self.rope.settings.get("partial_rotary_factor") or 1.0) * self.head_width)

    @property
    def model(self) -> Model:
        """What the rules for mixed types ask of it."""
        return Model(self.layers, self.heads, self.key_value_heads, self.experts, self.form.arch)

    @property
    def rows(self) -> int:
        """Rows of the embedding."""
        return next(entry.tensor.shape[0] for entry in self.entries if entry.tensor.name == "token_embd.weight")

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """Every tensor that the file gets, in the order of the checkpoint's files.

        Raises:
            ModelError: a weight has no place in the file, two have the same, or one is missing.
        """
        by_name = {name: arch for arch, name in MODEL_ARCH_NAMES.items()}
        arch: MODEL_ARCH = by_name[self.form.arch]
        names = get_tensor_name_map(arch, self.layers)
        found = {name: Entry(name, Tensor(name, values.shape)) for name, values in self.made.items()}
        for name, shape in self.weights.shapes.items():
            if name.endswith(_LEFT_OUT) or self._tied(name):
                continue
            own = names.get_name(_EXPERT.sub(r"\1\3", name), try_suffixes=(".weight", ".bias"))
            if own is None:
                raise _misfit(name, f"no tensor of GGUF's {self.form.arch}", "Check that the model is of that family.")
            if _EXPERT.search(name):
                parts = (*(found[own].parts if own in found else ()), name)
                found[own] = Entry(parts[0], Tensor(own, (len(parts), *shape)), parts)
            elif own in found:
                raise _misfit(name, f"a second '{own}'", "Remove one of the two from the checkpoint.")
            else:
                found[own] = Entry(name, Tensor(own, shape[1:] if own.endswith(_SINGLE_ROW) else shape))
        self._require_all(set(found))
        return tuple(self._in_order(entry) for entry in found.values())

    def by_layers(self) -> list[Tensor]:
        """The tensors in the order of their layers, as the rules for mixed types count them."""
        return sorted((entry.tensor for entry in self.entries), key=_layer)

    def read(self, entry: Entry) -> np.ndarray:
        """A tensor's values as the file has them, float32, in its shape."""
        blocks = list(self.blocks(entry))
        return (blocks[0] if len(blocks) == 1 else np.concatenate(blocks)).reshape(entry.tensor.shape)

    def blocks(self, entry: Entry) -> Iterator[np.ndarray]:
        """A tensor's rows as the file has them, float32 ``[N, K]``, at most some `BLOCK` values at once."""
        if entry.name in self.made:
            yield self.made[entry.name].reshape(1, -1)
            return
        for name in entry.parts or (entry.name,):
            weight = self._arranged(name, self.weights.read(name))
            rows_NK = weight.reshape(-1, weight.shape[-1]) if weight.ndim else weight.reshape(1, 1)
            step = max(1, BLOCK // max(1, rows_NK.shape[1]))
            for start in range(0, len(rows_NK), step):
                yield self._values(name, rows_NK[start : start + step].to(torch.float32)).numpy()

    @cached_property
    def made(self) -> dict[str, np.ndarray]:
        """Tensors that the checkpoint does not have, float32: factors of positions."""
        if self.form.long_factors:
            pair = long_factors(self.rope, self.rotated // 2)
            return {} if pair is None else {f"rope_factors_{name}.weight": pair[name] for name in pair}
        if self.rope.kind == "llama3":
            return {"rope_freqs.weight": llama3_factors(self.rope, self.head_width)}
        return {}

    def _arranged(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        if self.form.permuted and name.endswith(("q_proj.weight", "q_proj.bias")):
            return permuted(weight, self.heads)
        if self.form.permuted and name.endswith(("k_proj.weight", "k_proj.bias")):
            return permuted(weight, self.key_value_heads)
        return weight

    def _values(self, name: str, values: torch.Tensor) -> torch.Tensor:
        return values + 1.0 if self.form.plus_one and name.endswith("norm.weight") else values

    def _tied(self, name: str) -> bool:
        return name == "lm_head.weight" and bool(self.weights.config.get("tie_word_embeddings", self.form.tied))

    def _require_all(self, found: set[str]) -> None:
        wanted = {"token_embd.weight", "output_norm.weight"}
        if not self.weights.config.get("tie_word_embeddings", self.form.tied):
            wanted.add("output.weight")
        own = {name.split(".", 2)[2] for name in found if _LAYER.match(name)}
        wanted |= {f"blk.{layer}.{name}" for layer in range(self.layers) for name in own}
        if missing := sorted(wanted - found):
            raise ModelError(
                str(self.weights.folder),
                f"{len(missing)} tensors are missing (first: {missing[0]})",
                f"A model of {self.layers} layers has all of them in each.",
                "Copy its weights again.",
            )

    def _in_order(self, entry: Entry) -> Entry:
        if not entry.parts:
            return entry
        parts = tuple(sorted(entry.parts, key=_expert))
        if [_expert(name) for name in parts] != list(range(self.experts)):
            raise _misfit(parts[0], f"one of {len(parts)} experts", f"config.json says {self.experts}; check both.")
        return Entry(parts[0], entry.tensor, parts)


def permuted(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head from halves (Hugging Face) to pairs (as LLaMA was published, and GGUF's llama reads it)."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _require_positions(kind: str, form: Gguf) -> None:
    """Whether the architecture holds a kind of positions: llama.cpp looks for factors only where it expects some."""
    if form.long_factors:
        held = ("default", "longrope")
    else:
        held = ("default", "linear", "yarn", *(("llama3",) if form.arch == "llama" else ()))
    if kind not in held:
        rule = f"llama.cpp's {form.arch} has positions of these kinds: {', '.join(held)}."
        raise CapabilityError("rope_type", f"'{kind}'", rule, "Export it to Hugging Face or vLLM.")


def _require_attention_scale(config: Mapping[str, Any], source: Source) -> None:
    """Gemma's scale of attention is a field of its own in config.json, and none in the file."""
    if source.form.arch != "gemma3":
        return
    of_27b = source.layers == _GEMMA_27B_LAYERS
    taken = int(config["hidden_size"]) // source.heads if of_27b else source.head_width
    given = config.get("query_pre_attn_scalar", _GEMMA_SCALAR)
    if given != taken:
        rule = f"llama.cpp takes {taken} for a gemma3 of {source.layers} layers and these heads, and asks no field."
        raise CapabilityError("query_pre_attn_scalar", str(given), rule, "Export it to Hugging Face or vLLM.")


def _expert(name: str) -> int:
    found = _EXPERT.search(name)
    assert found is not None, "parts are experts"
    return int(found[2])


def _layer(tensor: Tensor) -> int:
    found = _LAYER.match(tensor.name)
    return int(found[1]) if found else -1


def _misfit(name: str, value: str, remedy: str) -> ModelError:
    return ModelError(f"'{name}'", value, "Every weight has a place of its own in the file.", remedy)


def _without_form(model_type: str, family: Family) -> CapabilityError:
    able = sorted({one for each in all_families() if each.gguf is not None for one in each.model_types})
    reason = f"{family.name} has none here" if family.model_types else "the family is not known here"
    return CapabilityError(
        f"GGUF of model_type '{model_type}'",
        reason,
        f"Names and metadata are written family by family: {', '.join(able)}.",
        "Export it to Hugging Face or vLLM.",
    )
