"""A model folder's tensors, by GGUF's names and one at a time.

Nothing is loaded: shapes come from the files' headers, and a tensor is read when it is written. Names are the `gguf`
package's; what a family does to values on the way is in its descriptor.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map
from safetensors import safe_open

from hasten.errors import CapabilityError, ModelError
from hasten.export.gguf.mixes import Tensor
from hasten.families.base import Gguf, family_of

_LEFT_OUT = (".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq")


@dataclass(frozen=True)
class Entry:
    """One tensor of the folder."""

    name: str
    """In the checkpoint."""
    file: Path
    tensor: Tensor
    """As the GGUF file has it."""


class Folder:
    """A plain model folder with 16-bit or 32-bit safetensors.

    Args:
        folder: config.json, weights, tokenizer.

    Raises:
        CapabilityError: the family has no GGUF form here.
        ModelError: weights are missing, quantized or not understood.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        family = family_of(self.config["model_type"])
        if family.gguf is None:
            raise CapabilityError(
                f"model_type '{self.config['model_type']}'",
                "it has no GGUF form here",
                "Names and metadata are written family by family.",
                "Export it to Hugging Face or vLLM.",
            )
        self.form: Gguf = family.gguf
        self.layers = int(self.config["num_hidden_layers"])
        self.heads = int(self.config["num_attention_heads"])
        self.key_value_heads = int(self.config.get("num_key_value_heads") or self.heads)
        self.head_width = int(self.config.get("head_dim") or self.config["hidden_size"] // self.heads)

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """Every tensor that the file gets, in the order of the checkpoint's files."""
        by_name = {name: arch for arch, name in MODEL_ARCH_NAMES.items()}
        arch: MODEL_ARCH = by_name[self.form.arch]
        names = get_tensor_name_map(arch, self.layers)
        found: list[Entry] = []
        for file in self._files():
            with safe_open(str(file), "np") as opened:
                for name in opened.keys():  # noqa: SIM118
                    if name.endswith(_LEFT_OUT) or self._tied(name):
                        continue
                    own = names.get_name(name, try_suffixes=(".weight", ".bias"))
                    if own is None:
                        raise ModelError(
                            f"'{name}'",
                            f"no tensor of GGUF's {self.form.arch}",
                            "Every weight has a place in the file.",
                            "Check that the folder holds a merged model of that family.",
                        )
                    shape = tuple(opened.get_slice(name).get_shape())
                    found.append(Entry(name, file, Tensor(own, shape)))
        return tuple(found)

    def read(self, entry: Entry) -> np.ndarray:
        """A tensor's values as the file has them, float32."""
        with safe_open(str(entry.file), "pt") as opened:
            values = opened.get_tensor(entry.name).to(torch.float32).numpy()
        if self.form.permuted and entry.name.endswith(("q_proj.weight", "q_proj.bias")):
            return _permuted(values, self.heads)
        if self.form.permuted and entry.name.endswith(("k_proj.weight", "k_proj.bias")):
            return _permuted(values, self.key_value_heads)
        return values

    def _files(self) -> Iterator[Path]:
        index = self.folder / "model.safetensors.index.json"
        if index.is_file():
            names = dict.fromkeys(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        else:
            names = {"model.safetensors": None}
        for name in names:
            file = self.folder / name
            if not file.is_file():
                raise ModelError(str(file), "it is not there", "A folder holds all of its shards.", "Merge once more.")
            yield file

    def _tied(self, name: str) -> bool:
        return name == "lm_head.weight" and bool(self.config.get("tie_word_embeddings"))


def _permuted(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from halves (Hugging Face) to pairs (as LLaMA was published, and GGUF's llama reads it)."""
    return (
        values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
    )
