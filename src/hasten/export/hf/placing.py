"""Which tensor of an adapter goes into which weight of a checkpoint, settled from names and shapes alone.

Every tensor must have its place: an adapter is merged completely or not at all.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

import torch

from hasten.errors import CapabilityError, ModelError
from hasten.export.hf.adapter_file import AdapterFile, Factors
from hasten.export.hf.ends import ends_of, is_tied, untied, with_vocabulary
from hasten.export.hf.experts import Place, inputs_first, on_disk, places, targeted
from hasten.export.weights import Weights


@dataclass(frozen=True)
class Placed:
    """A pair of factors and what of it concerns one weight of a checkpoint."""

    pair: Factors
    scale: float
    place: Place
    experts: int = 1
    transposed: bool = False
    begun: bool = False


@dataclass(frozen=True)
class Change:
    """What becomes of one weight."""

    of: str
    """The base's weight that is read; another's for a head that was tied."""
    table: str | None = None
    """The adapter's tensor in its place."""
    place: Place | None = None
    """The part of `table` that it is; None: all."""
    factors: Placed | None = None
    rows: tuple[str, tuple[int, ...]] | None = None
    """The adapter's tensor of single rows, and which these are."""
    bias: tuple[str, float] | None = None
    """The adapter's tensor that is added, and how strongly."""


class Placing:
    """What an adapter makes of a base.

    Args:
        base: the model.
        file: the adapter.
        begun: the adapter's tensors that are taken away again as they were at first, where the weight is not in NF4.
        in_nf4: the base's weights that are.

    Raises:
        ModelError: the adapter's tensors do not fit the base, or one has no place in it.
        CapabilityError: a bias where the base has none.
    """

    def __init__(self, base: Weights, file: AdapterFile, begun: AbstractSet[str], in_nf4: AbstractSet[str]) -> None:
        self.base, self.file = base, file
        self._begun, self._in_nf4 = begun, in_nf4
        self.config = base.config
        """The result's."""
        self.notes: list[str] = []
        self.changes: dict[str, Change] = {}
        """What becomes of weights, by their names; others stay."""
        for name, tensor in file.tables.items():
            self._replace(name, tensor)
        for pair in file.factors:
            self._change(pair)
        for module, tensor in file.rows.items():
            self._set_rows(module, tensor)
        self.shapes = self._settle_ends()
        """The result's, by name."""

    def _replace(self, name: str, tensor: str) -> None:
        shape, base = self.file.shapes[tensor], self.base.shapes
        whole = on_disk(name, base)
        if whole is not None and (len(shape) == 2 and self._is_end(whole) or shape == base[whole]):
            if shape[1:] != base[whole][1:]:
                raise self._misfit(tensor, shape, whole, base[whole])
            self.changes[whole] = Change(whole, tensor)
            return
        if whole is not None:
            raise self._misfit(tensor, shape, whole, base[whole])
        embedding, head = ends_of(base)
        if name == head and embedding is not None and is_tied(self.config, base):
            if shape[1:] != base[embedding][1:]:
                raise self._misfit(tensor, shape, embedding, base[embedding])
            self.changes[head] = Change(embedding, tensor)
            return
        found = places(name, base)
        if not found:
            raise self._homeless(tensor, name)
        for place in found:
            rows = sum(base[each.name][0] for each in found if each.expert == place.expert)
            if shape != (1 + max(each.expert or 0 for each in found), rows, *base[place.name][1:]):
                raise self._misfit(tensor, shape, place.name, base[place.name])
            self.changes[place.name] = Change(place.name, tensor, place)

    def _change(self, pair: Factors) -> None:
        name = f"{pair.module}.weight"
        own = on_disk(name, self.base.shapes)
        if own is None and name == self._tied_head:
            own = name
        if own is None:
            self._change_experts(pair)
            return
        change = self.changes.get(own) or Change(own if own in self.base.shapes else str(self._embedding))
        rank = self.file.shapes[pair.a][0]
        target = self.file.shapes[change.table] if change.table else self.base.shapes[change.of]
        transposed = pair.embedding or self.file.transposed
        self._require_fit(pair, own, target, transposed)
        scale = self.file.scale(pair.module, rank)
        begun = pair.a in self._begun and name not in self._in_nf4
        factors = Placed(pair, scale, Place(own), transposed=transposed, begun=begun)
        self.changes[own] = replace(change, factors=factors)
        if pair.bias is not None:
            self._add_bias(pair, scale)

    def _require_fit(self, pair: Factors, name: str, target: tuple[int, ...], transposed: bool) -> None:
        (rank, inputs), (outputs, other) = self.file.shapes[pair.a], self.file.shapes[pair.b]
        shape = (inputs, outputs) if transposed else (outputs, inputs)
        rows_of_end = self._is_end(name) and shape[1:] == target[1:] and shape[0] <= target[0]
        if rank != other or not (shape == target or rows_of_end):
            raise self._misfit(pair.b, shape, name, target)

    def _change_experts(self, pair: Factors) -> None:
        names = targeted(pair.module, list(self.file.config.get("target_parameters") or []))
        # `depth` counts from outside, names from inside.
        name = names[len(names) - 1 - pair.depth] if pair.depth < len(names) else f"{pair.module}.weight"
        found = places(name, self.base.shapes)
        if not found:
            raise self._homeless(pair.a, name)
        (both, inputs), (outputs, _) = self.file.shapes[pair.a], self.file.shapes[pair.b]
        for place in found:
            shape = self.base.shapes[place.name]
            if place.expert is None:
                experts = shape[0] if len(shape) == 3 else 1
                way = inputs_first(str(self.config.get("model_type")), (1, *shape)[-3:], inputs, outputs)
            else:
                experts = 1 + max(each.expert or 0 for each in found)
                rows = sum(self.base.shapes[each.name][0] for each in found if each.expert == place.expert)
                way = False if (rows, shape[1]) == (outputs, inputs) else None
            if way is None or both % experts:
                raise self._misfit(pair.b, (outputs, inputs), place.name, shape)
            scale = self.file.scale(name, both // experts)
            change = self.changes.get(place.name) or Change(place.name)
            self.changes[place.name] = replace(change, factors=Placed(pair, scale, place, experts, way))

    def _add_bias(self, pair: Factors, scale: float) -> None:
        name = f"{pair.module}.bias"
        assert pair.bias is not None, "asked for where there is one"
        if name not in self.base.shapes:
            raise CapabilityError(
                f"'{pair.bias}' in {self.file.folder}",
                f"a bias, and '{pair.module}' has none",
                "A merged model has the base's weights, and no others.",
                "Train with lora_bias=False, or use the adapter as it is.",
            )
        self.changes[name] = replace(self.changes.get(name) or Change(name), bias=(pair.bias, scale))

    def _set_rows(self, module: str, tensor: str) -> None:
        name = f"{module}.weight"
        of = name if name in self.base.shapes else str(self._embedding) if name == self._tied_head else None
        numbers = self.file.row_numbers(module)
        if of is None:
            raise self._homeless(tensor, name)
        change = self.changes.get(name) or Change(of)
        table = self.file.shapes[change.table] if change.table else self.base.shapes[of]
        wanted = (len(numbers), *table[1:])
        if self.file.shapes[tensor] != wanted or any(number >= table[0] for number in numbers):
            raise self._misfit(tensor, self.file.shapes[tensor], name, wanted)
        self.changes[name] = replace(change, rows=(tensor, tuple(numbers)))

    # --- both ends ----------------------------------------------------------------------------------------------------

    @property
    def _embedding(self) -> str | None:
        return ends_of(self.base.shapes)[0]

    @property
    def _tied_head(self) -> str | None:
        embedding, head = ends_of(self.base.shapes)
        return head if embedding is not None and is_tied(self.base.config, self.base.shapes) else None

    def _is_end(self, name: str) -> bool:
        return name in ends_of(self.base.shapes)

    def _settle_ends(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the result; ends that were tied and trained apart become two."""
        shapes = dict(self.base.shapes)
        embedding, head = ends_of(shapes)
        if embedding is None:
            return shapes
        if self._tied_head and (embedding in self.changes or head in self.changes):
            if self._stay_tied(embedding, head):
                shapes.pop(head, None)
                self.changes.pop(head, None)
            else:
                shapes[head] = shapes[embedding]
                self.config = untied(self.config)
                self.notes.append("embedding and head were tied and trained apart: the merged model has both")
        for name in (embedding, head):
            change = self.changes.get(name)
            if name in shapes and change is not None and change.table is not None:
                rows = max(self.file.shapes[change.table][0], self.base.shapes[change.of][0])
                shapes[name] = (rows, *shapes[name][1:])
        if head in shapes and shapes[head][0] != shapes[embedding][0]:
            raise ModelError(
                f"the adapter in {self.file.folder}",
                f"an embedding of {shapes[embedding][0]} rows and a head of {shapes[head][0]}",
                "Both have a row for each token.",
                "Save the adapter again with save_embedding_layers=True.",
            )
        if shapes[embedding][0] != self.base.shapes[embedding][0]:
            self.config = with_vocabulary(self.config, shapes[embedding][0])
            self.notes.append(f"the vocabulary grew to {shapes[embedding][0]} rows")
        return shapes

    def _stay_tied(self, embedding: str, head: str) -> bool:
        """Make of each end's change what it is on a live model whose ends share a weight; whether both are the same."""
        one = self.changes.get(embedding) or Change(embedding)
        other = replace(self.changes.get(head) or Change(embedding), of=embedding)
        if one.table is None and other.table is not None and self.file.frozen(head):
            one = replace(one, table=other.table)
        if other.table is None and one.table is not None and self.file.frozen(embedding):
            other = replace(other, table=one.table)
        if one.rows is not None and other.rows is None and other.factors is None:
            other = replace(other, rows=one.rows)
        self.changes |= {embedding: one, head: other}
        return (
            self._same_tensor(one.table, other.table)
            and self._same_factors(one.factors, other.factors)
            and (one.rows is None) == (other.rows is None)
            and (
                one.rows is None
                or other.rows is None
                or (one.rows[1] == other.rows[1] and self._same_tensor(one.rows[0], other.rows[0]))
            )
        )

    def _same_tensor(self, one: str | None, other: str | None) -> bool:
        if one is None or other is None or one == other:
            return one == other
        return torch.equal(self.file.read(one), self.file.read(other))

    def _same_factors(self, one: Placed | None, other: Placed | None) -> bool:
        if one is None or other is None:
            return one is other
        if one.scale != other.scale or one.pair.magnitude or other.pair.magnitude or not one.transposed:
            return False
        a, b = self.file.read(one.pair.a), self.file.read(one.pair.b)
        return torch.equal(a.T, self.file.read(other.pair.b)) and torch.equal(b.T, self.file.read(other.pair.a))

    def _misfit(self, tensor: str, shape: tuple[int, ...], name: str, wanted: tuple[int, ...]) -> ModelError:
        return ModelError(
            f"'{tensor}' in {self.file.folder}",
            f"it is for {' x '.join(map(str, shape))}, and '{name}' of {self.base.folder} is "
            f"{' x '.join(map(str, wanted))}",
            "An adapter is merged into the model it was trained on.",
            "Name that model as base.",
        )

    def _homeless(self, tensor: str, name: str) -> ModelError:
        return ModelError(
            f"'{tensor}' in {self.file.folder}",
            f"{self.base.folder} has no '{name}'",
            "Every tensor of an adapter has a weight in its base.",
            "Name the model that it was trained on as base.",
        )
