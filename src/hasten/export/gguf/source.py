"""A model's tensors by GGUF's names, one at a time.

Nothing is loaded: a tensor is read when it is written. Names are the `gguf` package's; what a family does to values on
the way is in its descriptor.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

from hasten.errors import CapabilityError, ModelError
from hasten.export.gguf.mixes import Tensor
from hasten.export.weights import Weights
from hasten.families.base import Gguf, family_of

_LEFT_OUT = (".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq")


@dataclass(frozen=True)
class Entry:
    """One tensor of the file."""

    name: str
    """In the checkpoint."""
    tensor: Tensor
    """As the GGUF file has it."""


class Source:
    """Weights by GGUF's names.

    Args:
        weights: the model.

    Raises:
        CapabilityError: the family has no GGUF form here.
    """

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        config = weights.config
        family = family_of(config["model_type"])
        if family.gguf is None:
            raise CapabilityError(
                f"model_type '{config['model_type']}'",
                "it has no GGUF form here",
                "Names and metadata are written family by family.",
                "Export it to Hugging Face or vLLM.",
            )
        self.form: Gguf = family.gguf
        self.layers = int(config["num_hidden_layers"])
        self.heads = int(config["num_attention_heads"])
        self.key_value_heads = int(config.get("num_key_value_heads") or self.heads)
        self.head_width = int(config.get("head_dim") or config["hidden_size"] // self.heads)

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """Every tensor that the file gets, in the order of the checkpoint's files.

        Raises:
            ModelError: a weight has no place in the file.
        """
        by_name = {name: arch for arch, name in MODEL_ARCH_NAMES.items()}
        arch: MODEL_ARCH = by_name[self.form.arch]
        names = get_tensor_name_map(arch, self.layers)
        found: list[Entry] = []
        for name, shape in self.weights.shapes.items():
            if name.endswith(_LEFT_OUT) or self._tied(name):
                continue
            own = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if own is None:
                raise ModelError(
                    f"'{name}'",
                    f"no tensor of GGUF's {self.form.arch}",
                    "Every weight has a place in the file.",
                    "Check that the model is of that family.",
                )
            found.append(Entry(name, Tensor(own, shape)))
        return tuple(found)

    def read(self, entry: Entry) -> np.ndarray:
        """A tensor's values as the file has them, float32."""
        values = self.weights.read(entry.name).to(torch.float32).numpy()
        if self.form.permuted and entry.name.endswith(("q_proj.weight", "q_proj.bias")):
            return _permuted(values, self.heads)
        if self.form.permuted and entry.name.endswith(("k_proj.weight", "k_proj.bias")):
            return _permuted(values, self.key_value_heads)
        return values

    def _tied(self, name: str) -> bool:
        return name == "lm_head.weight" and bool(self.weights.config.get("tie_word_embeddings"))


def _permuted(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from halves (Hugging Face) to pairs (as LLaMA was published, and GGUF's llama reads it)."""
    return (
        values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
    )
