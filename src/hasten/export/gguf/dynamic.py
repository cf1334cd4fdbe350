"""File type `dynamic`: each weight gets the type that keeps the model nearest to itself, for so many bytes in all.

What a type would cost is estimated for each weight of the layers by one backward (`hasten.quant.sensitivity`), from the
error that ggml's encoder really leaves; for embedding and head it is measured. A knapsack (`hasten.quant.choose`) then
spends the bytes. The same backward says how much each position counts, and the importance that rows are encoded with is
weighted by that (on SmolLM2 6 % less divergence with Q4_K_M's types than the plain mean of squares, none with ours).

Shapes: N outputs, K inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, quants

from hasten.errors import ConfigError
from hasten.export.gguf.encoders import Type, encode, row_bytes
from hasten.export.gguf.importance import Importance, Names
from hasten.export.gguf.mixes import Chosen, Model, Tensor, choose, is_quantized, named
from hasten.quant.choose import Upgrade, affordable
from hasten.quant.divergence import Reference
from hasten.quant.layers import Layer
from hasten.quant.moments import Moments
from hasten.quant.placing import lent
from hasten.quant.sensitivity import price
from hasten.quant.stages import Stages

NAME = "dynamic"
WIDE = (Type.Q3_K, Type.IQ4_XS, Type.Q4_K, Type.Q5_K, Type.Q6_K, Type.Q8_0)
"""What a weight may get whose rows are whole blocks of 256."""
NARROW = (Type.IQ4_NL, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0)
"""And where they are not. Each is larger than the one before it; others of a size leave more (Q4_0)."""
_MEASURED_ON = 2048
"""Tokens that embedding and head are measured on: a pass through the model for each type."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Priced:
    """One weight's ways."""

    tensor: Tensor
    nats: Mapping[Type, float]
    """Divergence per token that each type is estimated to cause."""
    measured: bool = False
    """Whether the divergence was measured instead (embedding and head)."""


@dataclass(frozen=True)
class Dynamic:
    """What was chosen, and by what."""

    choices: Mapping[str, Chosen]
    """The type of every tensor of the file."""
    importance: Importance
    """What the types were chosen with, and the file must be encoded with."""
    bytes: int
    """Of all tensors."""
    budget: int
    priced: tuple[Priced, ...]

    @property
    def nats(self) -> float:
        """Estimated divergence per token of all that was priced."""
        return sum(each.nats[self.choices[each.tensor.name].kind] for each in self.priced)


def tensor_bytes(tensor: Tensor, kind: Type) -> int:
    """Bytes of a tensor in a type."""
    return row_bytes(kind, tensor.shape[-1]) * int(np.prod(tensor.shape[:-1], dtype=np.int64))


def file_bytes(tensors: Sequence[Tensor], choices: Mapping[str, Chosen]) -> int:
    """Bytes of all tensors, without padding and metadata."""
    return sum(tensor_bytes(tensor, choices[tensor.name].kind) for tensor in tensors)


@dataclass(frozen=True)
class Survey:
    """What types cost, from which files of any size are chosen."""

    tensors: tuple[Tensor, ...]
    shape: Model
    priced: tuple[Priced, ...]
    importance: Importance

    def choose(self, size: str | float = "q4_k_m") -> Dynamic:
        """Every tensor's type, so that the model changes least.

        Args:
            size: a file type whose bytes are spent, or bits per weight of what is quantized.

        Raises:
            ConfigError: the size is no file type's, or too small for the least types.
        """
        like = named(size) if isinstance(size, str) else "q4_k_m"
        base = choose(self.tensors, like, self.shape, importance=True)
        budget = file_bytes(self.tensors, base) if isinstance(size, str) else _of_bits(self.tensors, size)
        choices = _spend(self.tensors, base, self.priced, budget)
        return Dynamic(choices, self.importance, file_bytes(self.tensors, choices), budget, self.priced)


def survey(
    model: Any,
    windows: Sequence[torch.Tensor],
    tensors: Sequence[Tensor],
    shape: Model,
    *,
    tell: Tell = lambda text: None,
    device: torch.device | None = None,
) -> Survey:
    """Find out what each type would cost each weight.

    Args:
        model: a causal language model of transformers', in evaluation mode, not quantized; it is left as it is.
        windows: int64 ``[T]`` each, of text that the model will see, e.g. of `hasten.quant.calibration.read_windows`.
        tensors: the file's.
        shape: whose they are.
        tell: told what is being done.
        device: where one layer at a time is copied to and computed; None: all of the model is where it is computed.

    Raises:
        ModelError: the weights are quantized already, or predictions are not finite.
        CapabilityError: the family has no GGUF form here, the model cannot be gone through layer by layer, or the text
            does not reach all of it.
        MissingPackageError: ggml's encoders are not installed.
    """
    stages, by_name = Stages(model, device), {tensor.name: tensor for tensor in tensors}
    found = _Candidates(model, by_name, Names(model.config))
    tell("weighing positions, and pricing every type of every weight in the layers")
    prices = price(stages, windows, found.errors_of)
    priced = [
        Priced(tensor, dict(zip(found.kinds[tensor.name], prices.nats[name], strict=True)))
        for name, tensor in found.tensors.items()
    ]
    tell("measuring every type of the embedding and the head")
    priced += _ends(stages, windows, by_name)
    positions = np.array([sum(map(len, windows))], dtype=np.float32)
    importance = Importance(
        {name: means * positions for name, means in found.importance.items()},
        dict.fromkeys(found.importance, positions),
        length=max(map(len, windows)),
    )
    return Survey(tuple(tensors), shape, tuple(priced), importance)


class _Candidates:
    """What each type leaves of each projection, by GGUF's names."""

    def __init__(self, model: Any, tensors: Mapping[str, Tensor], names: Names) -> None:
        self.model, self._by_name, self._names = model, tensors, names
        self.tensors: dict[str, Tensor] = {}
        """By the model's names of the projections."""
        self.kinds: dict[str, tuple[Type, ...]] = {}
        self.importance: dict[str, np.ndarray] = {}

    def errors_of(self, layer: Layer, moments: Moments) -> dict[str, list[torch.Tensor]]:
        """As `hasten.quant.sensitivity.price` asks for them."""
        errors: dict[str, list[torch.Tensor]] = {}
        for name in layer.projections:
            tensor = self._by_name.get(self._names.of(f"{name}.weight") or "")
            if tensor is None or not kinds_for(tensor):
                continue
            weight_NK = self.model.get_submodule(name).weight.detach()
            importance_K = moments.pop(name).diagonal().to("cpu", torch.float32).numpy().copy()
            self.tensors[name], self.kinds[tensor.name] = tensor, kinds_for(tensor)
            self.importance[tensor.name] = importance_K
            errors[name] = [error(weight_NK, kind, importance_K) for kind in self.kinds[tensor.name]]
        return errors


def kinds_for(tensor: Tensor) -> tuple[Type, ...]:
    """What a tensor may get, the least first; nothing where no block fits its rows."""
    width = tensor.shape[-1]
    return next(
        (kinds for kinds in (WIDE, NARROW) if all(width % GGML_QUANT_SIZES[kind][0] == 0 for kind in kinds)), ()
    )


def error(weight_NK: torch.Tensor, kind: Type, importance_K: np.ndarray | None = None) -> torch.Tensor:
    """What a type leaves of a weight: its value less the weight, in the weight's dtype and place."""
    return (stored(weight_NK, kind, importance_K) - weight_NK.float()).to(weight_NK.dtype)


def stored(weight_NK: torch.Tensor, kind: Type, importance_K: np.ndarray | None = None) -> torch.Tensor:
    """What a reader of the file finds in the place of a weight: float32 ``[N, K]``, where the weight is."""
    values = quants.dequantize(encode(weight_NK.cpu(), kind, importance_K), kind)
    return torch.from_numpy(values).to(weight_NK.device)


def _ends(stages: Stages, windows: Sequence[torch.Tensor], by_name: Mapping[str, Tensor]) -> list[Priced]:
    """Divergence with the embedding, and with the head, in each type."""
    model = stages.model
    ends = {"token_embd.weight": model.get_input_embeddings(), "output.weight": model.get_output_embeddings()}
    found: list[Priced] = []
    some = max(1, _MEASURED_ON // max(map(len, windows)))
    with Reference(stages, windows[:some]) as before:
        for name, module in ends.items():
            if name not in by_name or not kinds_for(by_name[name]):  # tied: the embedding serves as the head
                continue
            nats: dict[Type, float] = {}
            for kind in kinds_for(by_name[name]):
                with lent({module.weight: stored(module.weight.detach(), kind)}):
                    nats[kind] = before.divergence()
            found.append(Priced(by_name[name], nats, measured=True))
    return found


def _of_bits(tensors: Sequence[Tensor], bits: float) -> int:
    quantized = sum(int(np.prod(tensor.shape, dtype=np.int64)) for tensor in tensors if is_quantized(tensor))
    return int(quantized * bits / 8) + sum(tensor_bytes(each, Type.F32) for each in tensors if not is_quantized(each))


def _spend(
    tensors: Sequence[Tensor], base: Mapping[str, Chosen], priced: Sequence[Priced], budget: int
) -> dict[str, Chosen]:
    """The least type of everything that was priced, and the upgrades that are worth most."""
    choices, ways = dict(base), dict[str, list[Upgrade]]()
    kinds: dict[tuple[str, int], Type] = {}
    for each in priced:
        name, (least, *more) = each.tensor.name, each.nats
        choices[name], smallest = Chosen(least), tensor_bytes(each.tensor, least)
        added = {tensor_bytes(each.tensor, kind) - smallest: kind for kind in more}
        kinds |= {(name, size): kind for size, kind in added.items()}
        ways[name] = [Upgrade(0, 0, each.nats[least] - each.nats[kind], size) for size, kind in added.items()]
    left = budget - file_bytes(tensors, choices)
    if left < 0:
        bits = 8 * file_bytes(tensors, choices) / sum(int(np.prod(tensor.shape)) for tensor in tensors)
        raise ConfigError(
            "size",
            f"{budget:,} bytes",
            f"The least types take {file_bytes(tensors, choices):,}, {bits:.2f} bits per weight.",
            "Name a larger file type, or more bits per weight.",
        )
    for name, upgrade in affordable(ways, left).items():
        choices[name] = replace(choices[name], kind=kinds[name, upgrade.bytes_added])
    return choices
