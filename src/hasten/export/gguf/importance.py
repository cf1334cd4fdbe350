"""How much each value of a row counts: the mean square of what meets it, over calibration text.

That is what llama.cpp's `llama-imatrix` measures and its encoders ask for. Here the model that is exported measures it
itself, one decoder layer at a time (`hasten.quant.stages`). Files of llama.cpp's, GGUF or the older form, are read, and
ours can be written for its tools.

Shapes: K values of a row, E experts.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH_NAMES, GGUFReader, GGUFWriter, get_tensor_name_map
from torch import nn

from hasten.errors import CapabilityError, ModelError
from hasten.export.gguf.mixes import Tensor
from hasten.families.base import family_of
from hasten.files import storing
from hasten.quant.stages import Stages

_SUMS, _COUNTS = ".in_sum2", ".counts"
_DATASETS, _CHUNKS, _LENGTH = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"


@dataclass(frozen=True)
class Importance:
    """Sums of squares by GGUF's tensor names."""

    sums: Mapping[str, np.ndarray]
    """float32 ``[K]``, or ``[E, K]`` for experts."""
    counts: Mapping[str, np.ndarray]
    """Positions that were summed: float32 ``[1]``, or ``[E]``."""
    texts: tuple[str, ...] = ()
    """What it was measured on."""
    length: int = 512
    """Tokens of a window."""
    without: tuple[str, ...] = field(default=())
    """Weights that no position reached, or that have no name in GGUF."""

    def of(self, tensor: Tensor) -> np.ndarray | None:
        """For `hasten.export.gguf.encoders.encode`: float32 ``[K]`` or ``[E, K]``; None where nothing is known.

        An expert that no position reached has ones.

        Raises:
            ModelError: it was measured on a model of another shape.
        """
        if tensor.name not in self.sums:
            return None
        sums, counts = self.sums[tensor.name], self.counts[tensor.name]
        experts, width = tensor.shape[0] if len(tensor.shape) == 3 else 1, tensor.shape[-1]
        if sums.size != experts * width or len(counts) not in (1, experts):
            raise ModelError(
                f"importance of '{tensor.name}'",
                f"{sums.size} values",
                f"It has {experts * width}, one for each value of a row.",
                "Name an importance matrix that was measured on this model.",
            )
        counts_E1 = counts.reshape(-1, 1)
        means_EK = np.where(counts_E1 > 0, sums.reshape(experts, width) / np.maximum(counts_E1, 1), 1)
        return means_EK.astype(np.float32) if len(tensor.shape) == 3 else means_EK.astype(np.float32)[0]

    @property
    def windows(self) -> int:
        """How many were summed."""
        return int(max((float(counts.max()) for counts in self.counts.values()), default=0)) // max(self.length, 1)


@torch.no_grad()
def measure(
    model: Any,
    windows: Sequence[torch.Tensor],
    *,
    weights: Mapping[str, torch.Tensor] | None = None,
    device: torch.device | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Importance:
    """The importance of every linear weight in the decoder's layers; embedding and head have none, as llama-imatrix's.

    Args:
        model: a causal language model of transformers', in evaluation mode, not quantized.
        windows: int64 ``[T]`` each, e.g. of `hasten.quant.calibration.read_windows`.
        weights: for the name of a module, how much each position counts ``[positions]``; all alike without.
        device: where one layer at a time is copied to and computed; None: all of the model is where it is computed.
        progress: told how many layers are done, of how many.

    Raises:
        ModelError: the weights are quantized already, or what they read is not finite.
        CapabilityError: the family has no GGUF form here, or the model cannot be gone through layer by layer.
    """
    stages, named = Stages(model, device), Names(model.config)
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, np.ndarray] = {}
    without: list[str] = []
    texts = stages.opened(windows)
    for number, layer in enumerate(stages.layers):
        with stages.layer(number):
            linears = {
                f"{layer.name}.{inner}": module
                for inner, module in layer.module.named_modules()
                if isinstance(module, nn.Linear)
            }
            seen = {name: _Squares((weights or {}).get(name)) for name in linears}
            handles = [module.register_forward_pre_hook(seen[name]) for name, module in linears.items()]
            try:
                texts = stages.through(number, texts)
            finally:
                for handle in handles:
                    handle.remove()
        for name, squares in seen.items():
            own = named.of(f"{name}.weight")
            if own is None or squares.total is None:
                without.append(own or name)
                continue
            sums[own], counts[own] = (
                squares.total.to("cpu", torch.float32).numpy(),
                np.array([squares.positions], dtype=np.float32),
            )
            if not np.isfinite(sums[own]).all():
                raise ModelError(
                    name,
                    "what it reads is not finite",
                    "Its importance is the mean square of that.",
                    "Check the model's weights, or load it in another dtype.",
                )
        progress(number + 1, len(stages.layers))
    return Importance(sums, counts, length=max(map(len, windows), default=0), without=tuple(without))


class _Squares:
    """Sums squares of what a module reads, in float64: they differ by many orders."""

    def __init__(self, weights: torch.Tensor | None) -> None:
        self.weights, self.positions = weights, 0
        self.total: torch.Tensor | None = None

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        squares_TK = arguments[0].flatten(0, -2).float().square()
        start, self.positions = self.positions, self.positions + len(squares_TK)
        if self.weights is not None:
            squares_TK = squares_TK * self.weights[start : self.positions, None].to(squares_TK.device)
        total_K = squares_TK.sum(0, dtype=torch.float64)
        self.total = total_K if self.total is None else self.total + total_K


class Names:
    """GGUF's names of a model's weights.

    Args:
        config: the model's; its ``model_type`` names the family.

    Raises:
        CapabilityError: the family has no GGUF form here.
    """

    def __init__(self, config: Any) -> None:
        form = family_of(config.model_type).gguf
        if form is None:
            raise CapabilityError(
                f"model_type '{config.model_type}'",
                "it has no GGUF form here",
                "Importance is kept by GGUF's names.",
                "Export it to Hugging Face or vLLM.",
            )
        self.arch = form.arch
        arch = next(number for number, name in MODEL_ARCH_NAMES.items() if name == form.arch)
        self._map = get_tensor_name_map(arch, config.num_hidden_layers)

    def of(self, name: str) -> str | None:
        """GGUF's name of a weight of the checkpoint's; None where it has none."""
        return self._map.get_name(name, try_suffixes=(".weight", ".bias"))


def write_importance(file: Path, importance: Importance) -> None:
    """A file that llama-quantize takes as ``--imatrix``.

    Raises:
        StorageError: it cannot be written.
    """
    temporary = file.with_name(f".{file.name}.part")
    try:
        with storing(file):
            writer = GGUFWriter(temporary, "imatrix")
            writer.add_type("imatrix")
            writer.add_array(_DATASETS, list(importance.texts) or ["unnamed"])
            writer.add_uint32(_CHUNKS, importance.windows)
            writer.add_uint32(_LENGTH, importance.length)
            for name in sorted(importance.sums):
                sums, counts = importance.sums[name], importance.counts[name]
                writer.add_tensor(name + _SUMS, np.atleast_2d(sums).astype(np.float32))
                writer.add_tensor(name + _COUNTS, counts.reshape(-1, 1).astype(np.float32))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def read_importance(file: Path) -> Importance:
    """A file of llama-imatrix's, GGUF or the older ``.dat``.

    Raises:
        ModelError: it cannot be read, is damaged, or is something else.
    """
    try:
        with file.open("rb") as opened:
            is_gguf = opened.read(4) == b"GGUF"
        found = _read_gguf(file) if is_gguf else _read_old(file.read_bytes())
    except OSError as cause:
        raise _damaged(file, f"it cannot be read ({cause.strerror or cause})") from cause
    except (ValueError, LookupError, struct.error) as cause:
        raise _damaged(file, "it is damaged, or something else") from cause
    for name, sums in found.sums.items():
        if not (np.isfinite(sums).all() and np.isfinite(found.counts[name]).all()):
            raise _damaged(file, f"'{name}' has values that are not finite")
    if not found.sums:
        raise _damaged(file, "no weight is in it")
    return found


def _read_gguf(file: Path) -> Importance:
    reader = GGUFReader(file)
    tensors = {str(tensor.name): np.array(tensor.data, dtype=np.float32) for tensor in reader.tensors}
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, np.ndarray] = {}
    for full, values in tensors.items():
        if full.endswith(_SUMS):
            name = full.removesuffix(_SUMS)
            counts[name] = tensors[name + _COUNTS].reshape(-1)
            per_expert = values.reshape(len(counts[name]), -1)
            sums[name] = per_expert if len(counts[name]) > 1 else per_expert[0]
    texts, length = reader.get_field(_DATASETS), reader.get_field(_LENGTH)
    return Importance(
        sums,
        counts,
        tuple(texts.contents()) if texts is not None else (),
        int(length.contents()) if length is not None else 512,
    )


def _read_old(data: bytes) -> Importance:
    """Number of entries; of each its name, calls, values, all with their lengths as int32; means times calls."""
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, np.ndarray] = {}
    (entries,), at = struct.unpack_from("<i", data), 4
    if entries < 0:
        raise ValueError("no number of entries")
    for _ in range(entries):
        (size,) = struct.unpack_from("<i", data, at)
        if not 0 < size < 1024:
            raise ValueError("no name")
        name = struct.unpack_from(f"<{size}s", data, at + 4)[0].decode()
        calls, values = struct.unpack_from("<ii", data, at + 4 + size)
        at += 12 + size
        if values < 1:
            raise ValueError("no values")
        sums[name] = np.frombuffer(data, "<f4", values, at).astype(np.float32)
        counts[name] = np.array([max(calls, 1)], dtype=np.float32)
        at += 4 * values
    return Importance(sums, counts)


def _damaged(file: Path, value: str) -> ModelError:
    rule = "An importance matrix is a file that llama-imatrix or `write_importance` wrote."
    return ModelError(str(file), value, rule, "Make it again, or leave it out: hasten can measure its own.")
