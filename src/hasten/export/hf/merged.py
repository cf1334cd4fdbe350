"""A base and a LoRA adapter on it as one model: each weight is merged when it is read.

Which tensor of the adapter goes where is settled before anything is read (`hasten.export.hf.placing`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from hasten.errors import ModelError
from hasten.export.hf.adapter_file import PREFIX, AdapterFile
from hasten.export.hf.experts import factors_of
from hasten.export.hf.low_rank import LowRank, merged
from hasten.export.hf.placing import Change, Placed, Placing
from hasten.export.hf.tokenizer import tokenizer_folder
from hasten.export.weights import Weights
from hasten.loading.beginning import FILE, read_beginning


class MergedWeights:
    """A base with an adapter merged into it; itself `Weights`.

    LoRA (patterns of rank and alpha, rsLoRA, biases), DoRA, whole modules, single rows of embeddings, experts.
    Embedding and head that were tied and trained apart become two weights, and `config` says so. Tables never lose
    rows.

    Args:
        base: the model that the adapter was trained on, or the 16-bit original of its 4-bit weights.
        adapter: a folder of peft's.

    Raises:
        ModelError: the adapter's tensors do not fit the base, or one has no place in it.
        CapabilityError: an adapter of a kind whose merge is no sum.
    """

    def __init__(self, base: Weights, adapter: Path) -> None:
        self.base, self.adapter = base, adapter
        self.folder = tokenizer_folder(base.folder, adapter)
        self.file = AdapterFile(adapter)
        self.notes: list[str] = []
        """What a reader should know, one sentence each."""
        self._in_nf4: frozenset[str] = getattr(base, "in_nf4", frozenset())
        self._began = self._read_beginning()
        self._placing = Placing(base, self.file, self._began.keys(), self._in_nf4)
        self.notes += self._placing.notes
        self.config = self._placing.config
        self.shapes: Mapping[str, tuple[int, ...]] = self._placing.shapes

    def read(self, name: str) -> torch.Tensor:
        """One weight, merged: in the base's dtype, or in the adapter's where it holds the weight whole."""
        change = self._placing.changes.get(name)
        if change is None:
            return self.base.read(name)
        value = self._before(change)
        if change.factors is not None:
            value = self._merged(value, change.factors)
        if change.rows is not None:
            tensor, numbers = change.rows
            value = value.clone()
            value[list(numbers)] = self.file.read(tensor).to(value.dtype)
        if change.bias is not None:
            tensor, scale = change.bias
            value = (value.float() + self.file.read(tensor).float() * scale).to(value.dtype)
        return value

    def _before(self, change: Change) -> torch.Tensor:
        """A weight without its low-rank change."""
        if change.table is None:
            return self.base.read(change.of)
        table = self.file.read(change.table)
        place = change.place
        if place is not None and place.expert is not None:
            return table[place.expert, place.first : place.first + self.base.shapes[change.of][0]].clone()
        rows = self.base.shapes[change.of][0] if table.ndim else 0
        if table.ndim == 2 and len(table) < rows:  # a table that was cut to its tokens; the base's rows stay
            table = torch.cat((table, self.base.read(change.of)[len(table) :].to(table.dtype)))
        return table

    def _merged(self, value: torch.Tensor, factors: Placed) -> torch.Tensor:
        pair, place = factors.pair, factors.place
        a, b = self.file.read(pair.a), self.file.read(pair.b)
        if place.expert is None and value.ndim == 2:
            return merged(value, self._low_rank(factors, a, b))
        if place.expert is not None:
            own_a, own_b = factors_of(a, b, factors.experts, place.expert)
            return merged(value, LowRank(own_a, own_b[place.first : place.first + len(value)], factors.scale))
        out = torch.empty_like(value)
        for expert in range(factors.experts):
            own_a, own_b = factors_of(a, b, factors.experts, expert)
            out[expert] = merged(value[expert], LowRank(own_a, own_b, factors.scale, factors.transposed))
        return out

    def _low_rank(self, factors: Placed, a: torch.Tensor, b: torch.Tensor) -> LowRank:
        pair = factors.pair
        magnitude = self.file.read(pair.magnitude) if pair.magnitude else None
        begun = (self._began[pair.a], self._began[pair.b]) if factors.begun else None
        return LowRank(a, b, factors.scale, factors.transposed, magnitude, begun)

    def _read_beginning(self) -> dict[str, torch.Tensor]:
        """The factors that the adapter began with, where they made up for 4 bits that `base` has not lost."""
        file = self.adapter / FILE
        if not file.is_file():
            return {}
        began = read_beginning(file, self.file.file)
        weights = [name.removeprefix(PREFIX).replace(".lora_A", "") for name in began if ".lora_A" in name]
        kept = [name for name in weights if name in self._in_nf4]
        if kept and len(kept) < len(weights):
            raise ModelError(
                str(self.adapter),
                f"{len(weights) - len(kept)} of the {len(weights)} weights that it adapts are not in 4 bits",
                "It began as what 4 bits lost of them, so it fits weights that all are, or none.",
                "Name the 16-bit original as base.",
            )
        if not kept:
            self.notes.append("the adapter's beginning, which made up for 4 bits, is left out of 16-bit weights")
        return began
