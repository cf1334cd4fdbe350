"""GGUF files of several types from one pass over a model's weights.

Each weight is read once and encoded for every file, some rows at a time, so that memory does not grow with the model.
Files are written under temporary names, read back, and renamed when all of them are whole.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
from gguf import GGUFWriter

from hasten.errors import ConfigError, ModelError, StorageError
from hasten.export.gguf.encoders import PLAIN, Type, encode
from hasten.export.gguf.header import byte_count, padded, read_header, unfinished, write_header
from hasten.export.gguf.metadata import Value, file_type, metadata
from hasten.export.gguf.mixes import Chosen, choose, named
from hasten.export.gguf.source import Entry, Source
from hasten.export.weights import Weights
from hasten.files import require_space, storing

Progress = Callable[[int, int], None]
_HEAD = 2**25
"""More than a head takes: names, tokens, merges."""
_F16_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Fallback:
    """A tensor that did not get its type."""

    tensor: str
    wanted: Type
    got: Type


@dataclass(frozen=True)
class Planned:
    """What a file will hold."""

    path: Path
    bytes: int
    """Of its tensors; of a written file, all."""
    tensors: Mapping[Type, int]
    """How many have each type."""
    bits_per_weight: float
    fallbacks: tuple[Fallback, ...]
    """Tensors whose rows do not fit the blocks of the type that they should have had."""


@dataclass(frozen=True)
class Written(Planned):
    """What a file holds."""


@dataclass
class _Output:
    path: Path
    temporary: Path
    chosen: Mapping[str, Chosen]
    file: BinaryIO


def plan_gguf(
    weights: Weights,
    outputs: Mapping[str, Path],
    *,
    choices: Mapping[str, Mapping[str, Chosen]] | None = None,
    importance: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Planned]:
    """What `write_gguf` would write, without reading a weight.

    Args and errors are those of `write_gguf`; nothing is asked of the disk.
    """
    source = Source(weights)
    chosen = _chosen(source, outputs, choices or {}, importance)
    return {name: _planned(source, outputs[name], kinds) for name, kinds in chosen.items()}


def write_gguf(
    weights: Weights,
    outputs: Mapping[str, Path],
    *,
    choices: Mapping[str, Mapping[str, Chosen]] | None = None,
    importance: Mapping[str, np.ndarray] | None = None,
    facts: Mapping[str, Value | None] | None = None,
    progress: Progress | None = None,
) -> dict[str, Written]:
    """Write a model as GGUF files.

    Args:
        weights: the model.
        outputs: file by type (``f16``, ``q8_0``, ``q4_k_m`` ..., or a name that `choices` has).
        choices: of a file, the type of every tensor by GGUF's names, instead of those that its name stands for.
        importance: how much an error of each value of a tensor's rows counts, float32 ``[K]`` (of experts ``[E, K]``),
            by GGUF's names.
        facts: metadata beyond the model's own, e.g. ``{"general.name": ...}``; None leaves a key out.
        progress: called with bytes written and bytes in all, of all files together.

    Returns:
        What was written, by the names of `outputs`.

    Raises:
        CapabilityError: a family, tokenizer or kind of positions that GGUF files are not written for.
        ConfigError: an unknown type, or choices that are not those of this model's tensors.
        MissingPackageError: a type whose encoder is not installed.
        ModelError: a weight is missing, not finite, or too large for 16 bits; or tokens and embedding do not fit.
        StorageError: the disk is full or a file cannot be written; nothing is left behind.
    """
    source = Source(weights)
    chosen = _chosen(source, outputs, choices or {}, importance)
    planned = {name: _planned(source, outputs[name], kinds) for name, kinds in chosen.items()}
    _try_encoders(chosen)
    draft = metadata(source, facts)
    _require_space(planned.values())
    total = sum(each.bytes for each in planned.values())
    with ExitStack() as stack:
        opened = []
        for name, kinds in chosen.items():
            draft.kv_data[0].pop("general.file_type", None)
            draft.add_file_type(file_type(name, _values(source, kinds)))
            opened.append(stack.enter_context(_output(outputs[name], source, kinds, draft)))
        done = 0
        for entry in source.entries:
            for count in _write_tensor(source, entry, opened, (importance or {}).get(entry.tensor.name)):
                done += count
                if progress is not None:
                    progress(done, total)
        for each in opened:
            _finish(each, source)
        for each in opened:
            with storing(each.path):
                each.temporary.replace(each.path)
    return {
        name: Written(
            path=each.path,
            bytes=each.path.stat().st_size,
            tensors=each.tensors,
            bits_per_weight=each.bits_per_weight,
            fallbacks=each.fallbacks,
        )
        for name, each in planned.items()
    }


def _chosen(
    source: Source,
    outputs: Mapping[str, Path],
    choices: Mapping[str, Mapping[str, Chosen]],
    importance: Mapping[str, np.ndarray] | None,
) -> dict[str, Mapping[str, Chosen]]:
    found: dict[str, Mapping[str, Chosen]] = {}
    names = {entry.tensor.name for entry in source.entries}
    if len({path.absolute() for path in outputs.values()}) < len(outputs):
        rule = "Each type is a file of its own."
        raise ConfigError("outputs", "two of them are one file", rule, "Give each another name.")
    for name in outputs:
        given = choices.get(name)
        if given is None:
            found[name] = choose(source.by_layers(), named(name), source.model, importance=importance is not None)
        elif unlike := sorted(names ^ set(given)):
            raise ConfigError(
                f"choices['{name}']",
                f"{len(unlike)} tensors are in one of the two only (first: '{unlike[0]}')",
                "Every tensor of the model has a type, and no other.",
                "Make them from this model's own tensors.",
            )
        else:
            found[name] = given
    return found


def _planned(source: Source, path: Path, chosen: Mapping[str, Chosen]) -> Planned:
    kinds = [(entry.tensor, chosen[entry.tensor.name]) for entry in source.entries]
    data = sum(byte_count(tensor, each.kind) for tensor, each in kinds)
    return Planned(
        path=path,
        bytes=data,
        tensors=Counter(each.kind for _, each in kinds),
        bits_per_weight=8 * data / sum(prod(tensor.shape) for tensor, _ in kinds),
        fallbacks=tuple(
            Fallback(tensor.name, each.instead_of, each.kind) for tensor, each in kinds if each.instead_of is not None
        ),
    )


def _try_encoders(chosen: Mapping[str, Mapping[str, Chosen]]) -> None:
    """A missing encoder is found before hours of work, not after."""
    for kind in {each.kind for kinds in chosen.values() for each in kinds.values()} - set(PLAIN):
        encode(np.zeros((1, 256), dtype=np.float32), kind, np.ones(256, dtype=np.float32))


def _values(source: Source, chosen: Mapping[str, Chosen]) -> Counter[Type]:
    """Values by type."""
    found: Counter[Type] = Counter()
    for entry in source.entries:
        found[chosen[entry.tensor.name].kind] += prod(entry.tensor.shape)
    return found


def _require_space(planned: Iterable[Planned]) -> None:
    needed: Counter[Path] = Counter()
    for each in planned:
        needed[_existing(each.path)] += each.bytes + _HEAD
    for folder, count in needed.items():
        require_space(folder, count, "The GGUF files take about")


def _existing(path: Path) -> Path:
    found = path.expanduser().absolute().parent
    while not found.exists():
        found = found.parent
    return found


@contextmanager
def _output(path: Path, source: Source, chosen: Mapping[str, Chosen], facts: GGUFWriter) -> Iterator[_Output]:
    tensors = {entry.tensor.name: (entry.tensor, chosen[entry.tensor.name].kind) for entry in source.entries}
    with unfinished(path) as temporary:
        with storing(path):
            write_header(temporary, facts, tensors)
            file = temporary.open("ab")
        with file:
            _pad(path, file)
            yield _Output(path, temporary, chosen, file)


def _pad(path: Path, file: BinaryIO) -> None:
    with storing(path):
        at = file.tell()
        file.write(bytes(padded(at) - at))


def _write_tensor(source: Source, entry: Entry, outputs: list[_Output], importance: np.ndarray | None) -> Iterator[int]:
    row = 0
    for rows_NK in source.blocks(entry):
        most, least = float(rows_NK.max(initial=0.0)), float(rows_NK.min(initial=0.0))
        widest = max(most, -least)
        if not (np.isfinite(most) and np.isfinite(least)):
            rule = "A GGUF file of it would answer nothing."
            raise ModelError(f"'{entry.name}'", "it holds NaN or infinity", rule, "Train again, or copy it again.")
        for each in outputs:
            kind = each.chosen[entry.tensor.name].kind
            if kind == Type.F16 and widest > _F16_MAX:
                raise ModelError(
                    f"'{entry.name}'",
                    f"it holds {widest:.6g}",
                    f"16-bit floats end at {_F16_MAX:.0f}.",
                    "Use 'bf16', 'f32' or a type of fewer bits.",
                )
            weights = importance
            if importance is not None and importance.ndim == 2:
                weights = importance[row // entry.tensor.shape[-2]]
            encoded = encode(rows_NK, kind, weights)
            with storing(each.path):
                each.file.write(encoded.data)
            yield encoded.nbytes
        row += len(rows_NK)
    for each in outputs:
        _pad(each.path, each.file)


def _finish(output: _Output, source: Source) -> None:
    with storing(output.path):
        output.file.flush()
        os.fsync(output.file.fileno())
    found = read_header(output.temporary)
    for entry in source.entries:
        placed, kind = found.pop(entry.tensor.name, None), output.chosen[entry.tensor.name].kind
        if placed is None or (placed.shape, placed.kind) != (entry.tensor.shape, kind):
            rule = "What was written is read back."
            raise StorageError(str(output.path), f"'{entry.tensor.name}' is not as written", rule, "Report this.")
    assert not found, "no tensor that was not asked for"
