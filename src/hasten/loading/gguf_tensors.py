"""A GGUF's tensors as safetensors, one at a time.

Every value is kept exactly. F16 and BF16 stay as they are; float32 becomes the file's own 16-bit type where that holds
every value of the tensor; quantized types are dequantized to float32, since scale times code needs more digits than 16
bits have. Rows know nothing of each other, so queries and keys are put in order before they are dequantized, and a
tensor is dequantized in blocks of rows: memory for a few blocks, never for the model.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hasten.errors import ModelError
from hasten.files import require_space
from hasten.hardware.probe import usable_cores
from hasten.loading.gguf_config import not_taken
from hasten.loading.gguf_experts import Place, as_stored, place_of
from hasten.loading.gguf_file import GgufFile
from hasten.loading.gguf_names import Form, checkpoint_name

if TYPE_CHECKING:
    from gguf import ReaderTensor

Kept = Literal["F32", "F16", "BF16"]
TORCH = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_SHARD = 4_000_000_000
_VALUES = 2**22
"""That are dequantized at once."""
_WHOLE = "model.safetensors"


@dataclass(frozen=True)
class Stored:
    """One tensor of the folder."""

    name: str
    """In the checkpoint."""
    origin: ReaderTensor
    """In the file."""
    shape: tuple[int, ...]
    kept: Kept
    heads: int = 0
    """Of the queries or keys whose rows lie in pairs; 0: rows are in order."""
    less: float = 0.0
    """Taken off every value."""
    first: int = 0
    """Its first row in the file's tensor, which holds several."""

    @property
    def bytes(self) -> int:
        """That it takes in the folder."""
        return prod(self.shape) * _BYTES[self.kept]


def plan(file: GgufFile, form: Form, config: Any) -> list[Stored]:
    """Every tensor of the folder, in the order of the file.

    Args:
        file: the model.
        form: its architecture.
        config: its configuration.

    Raises:
        ModelError: a tensor has no place, a place has no tensor, a shape is another, or a type cannot be decoded.
    """
    _require_decodable(file)
    half = _sixteen(file)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    found: list[Stored] = []
    for tensor in file.tensors.values():
        if tensor.name in form.ignored:
            continue
        shape = tuple(int(size) for size in reversed(tensor.shape))
        place = place_of(tensor.name) if form.experts is not None else None
        if place is not None:
            found += _of_experts(file, tensor, shape, place, form, _kept(tensor, half, 0.0))
            continue
        name = checkpoint_name(tensor.name, form)
        if name is None:
            raise ModelError(
                str(file.path),
                f"tensor '{tensor.name}'",
                f"A {file.arch} model has no such tensor, and leaving it out would change the model.",
                "Use the model's Hugging Face folder.",
            )
        less = 1.0 if form.plus_one and name.endswith("norm.weight") else 0.0
        paired = heads.get(name.split(".")[-2], 0) if form.permuted else 0
        if tensor.name.split(".")[-2] in form.single_rows and len(shape) == 1:
            shape = (1, *shape)
        found.append(Stored(name, tensor, shape, _kept(tensor, half, less), paired, less))
    by_name = {each.name: each for each in found}
    if twice := [each for each in found if by_name[each.name] is not each]:
        raise ModelError(
            str(file.path),
            f"tensors '{twice[0].origin.name}' and '{by_name[twice[0].name].origin.name}'",
            f"Both are '{twice[0].name}', and a model has one of it.",
            "Download it again, or use the model's Hugging Face folder.",
        )
    _require_whole(file, form, {name: each.shape for name, each in by_name.items()}, config)
    return found


def _of_experts(
    file: GgufFile, tensor: ReaderTensor, shape: tuple[int, ...], place: Place, form: Form, kept: Kept
) -> list[Stored]:
    """A matrix for each expert: rows of all of them lie one after another, so each is a part of the file's tensor."""
    assert form.experts is not None, "asked of forms with experts"
    if len(shape) != (3 if place.number is None else 2):
        raise ModelError(
            str(file.path),
            f"tensor '{tensor.name}' of shape {shape}",
            "Experts are one tensor of three dimensions, or each one of two.",
            "Download it again, or use the model's Hugging Face folder.",
        )
    if place.number is not None:
        return [Stored(place.name(form.experts, place.number), tensor, shape, kept)]
    count, rows, width = shape
    if not rows * width:  # such a tensor has no bytes, so that its file may say any number of experts
        rule = "Download it again, or use the model's Hugging Face folder."
        raise ModelError(str(file.path), f"tensor '{tensor.name}' of shape {shape}", "Experts have values.", rule)
    return [
        Stored(place.name(form.experts, number), tensor, (rows, width), kept, first=number * rows)
        for number in range(count)
    ]


def main_type(stored: list[Stored]) -> str:
    """torch's name of the type that most values are kept in."""
    sizes = dict.fromkeys(_BYTES, 0)
    for each in stored:
        sizes[each.kept] += prod(each.shape)
    return TORCH[max(sizes, key=lambda kept: sizes[kept])]


def write(stored: list[Stored], folder: Path) -> None:
    """Write the tensors as safetensors, in shards of 4 GB.

    Raises:
        StorageError: the disk has no room for them.
    """
    total = sum(each.bytes for each in stored)
    require_space(folder, total, "The converted model takes", folder.parent)
    shards = list(_shards(stored))
    if len(shards) == 1:
        _write_file(folder / _WHOLE, stored)
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_file(folder / file, shard)
        places |= {each.name: file for each in shard}
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / f"{_WHOLE}.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def values(stored: Stored) -> Iterator[np.ndarray]:
    """A tensor's values in order, in blocks of rows, in the type in which they are kept (BF16 as uint16)."""
    from gguf.quants import dequantize

    rows, blocks = _in_order(stored)
    kind = stored.origin.tensor_type
    if kind.name == stored.kept and not stored.less:
        for block in blocks:
            yield rows[block].view(np.uint16) if kind.name == "BF16" else rows[block]
        return
    workers = usable_cores()
    with ThreadPoolExecutor(workers) as threads:
        for start in range(0, len(blocks), workers):  # not all at once: finished blocks wait in memory
            for block in threads.map(lambda place: dequantize(rows[place], kind), blocks[start : start + workers]):
                yield _narrowed(block - np.float32(stored.less) if stored.less else block, stored.kept)


def _in_order(stored: Stored) -> tuple[np.ndarray, list[slice] | list[np.ndarray]]:
    """The tensor's rows as the file has them (a vector is one row), and the places of those of each block, in order."""
    data: np.ndarray = stored.origin.data
    if len(stored.shape) == 1:
        if stored.heads and stored.origin.tensor_type.name == "BF16":
            data = data.view(np.uint16)  # whole values, not bytes, change places
        if stored.heads:
            data = data.reshape(stored.heads, -1, 2).swapaxes(1, 2)
        return data.reshape(1, -1), [slice(0, 1)]
    rows = data.reshape(-1, data.shape[-1])[stored.first : stored.first + prod(stored.shape[:-1])]
    step = max(_VALUES // max(stored.shape[-1], 1), 1)
    starts = range(0, len(rows), step)
    if not stored.heads:
        return rows, [slice(start, start + step) for start in starts]
    places = np.arange(len(rows)).reshape(stored.heads, -1, 2).swapaxes(1, 2).reshape(-1)
    return rows, [places[start : start + step] for start in starts]


def _kept(tensor: ReaderTensor, half: Kept, less: float) -> Kept:
    kind = tensor.tensor_type.name
    if kind in ("F16", "BF16") and not less:
        return kind
    if kind not in ("F32", "F16", "BF16"):
        return "F32"
    whole = Stored("", tensor, tuple(int(size) for size in reversed(tensor.shape)), "F32", less=less)
    return half if all(_holds(block, half) for block in values(whole)) else "F32"


def _sixteen(file: GgufFile) -> Kept:
    """The 16-bit type of the file's matrices; F32 where most are quantized."""
    sizes: dict[str, int] = {}
    for tensor in file.tensors.values():
        sizes[tensor.tensor_type.name] = sizes.get(tensor.tensor_type.name, 0) + tensor.n_elements
    main = max(sizes, key=lambda kind: sizes[kind])
    if main in ("F16", "BF16"):
        return main  # type: ignore[return-value]  # one of Kept
    if main != "F32":
        return "F32"
    wide = [tensor for tensor in file.tensors.values() if tensor.tensor_type.name == "F32" and len(tensor.shape) > 1]
    for half in ("BF16", "F16"):
        if all(_kept(tensor, half, 0.0) == half for tensor in wide):
            return half
    return "F32"


def _holds(block: np.ndarray, kept: Kept) -> bool:
    if kept == "F32":
        return True
    if kept == "BF16":
        return not np.any(block.view(np.uint32) & 0xFFFF)
    with np.errstate(over="ignore"):
        return bool(np.array_equal(block.astype(np.float16).astype(np.float32), block))


def _narrowed(block: np.ndarray, kept: Kept) -> np.ndarray:
    block = np.ascontiguousarray(block, dtype=np.float32)
    if kept == "F16":
        return block.astype(np.float16)
    return (block.view(np.uint32) >> 16).astype(np.uint16) if kept == "BF16" else block


def _require_decodable(file: GgufFile) -> None:
    from gguf.quants import dequantize

    for tensor in {each.tensor_type: each for each in file.tensors.values()}.values():
        try:
            dequantize(tensor.data.reshape(-1, tensor.data.shape[-1])[:1], tensor.tensor_type)
        except NotImplementedError as cause:
            raise ModelError(
                str(file.path),
                f"tensor '{tensor.name}' of type {tensor.tensor_type.name}",
                "The gguf package cannot decode that type.",
                "Use a file of another type, or the model's Hugging Face folder.",
            ) from cause


def _require_whole(file: GgufFile, form: Form, found: Mapping[str, tuple[int, ...]], config: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (ValueError, ArithmeticError, RuntimeError) as cause:
        raise not_taken(file, cause) from cause
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if form.experts is not None:
        wanted = as_stored(wanted, form.experts)
    if config.tie_word_embeddings:
        wanted.pop("lm_head.weight", None)
    wrong = [name for name in wanted if found.get(name) != wanted[name]] + [
        name for name in found if name not in wanted
    ]
    if wrong:
        name = wrong[0]
        raise ModelError(
            str(file.path),
            f"{len(wrong)} tensors differ from what its metadata says (first: '{name}' is "
            f"{found.get(name, 'missing')}, not {wanted.get(name, 'expected')})",
            "A model is loaded completely or not at all.",
            "Download it again, or use the model's Hugging Face folder.",
        )


def _shards(stored: list[Stored]) -> Iterator[list[Stored]]:
    shard: list[Stored] = []
    size = 0
    for each in stored:
        if shard and size + each.bytes > _SHARD:
            yield shard
            shard, size = [], 0
        shard.append(each)
        size += each.bytes
    yield shard


def _write_file(path: Path, stored: list[Stored]) -> None:
    """One safetensors file: the length of a JSON header, the header, the values."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for each in stored:
        header[each.name] = {"dtype": each.kept, "shape": list(each.shape), "data_offsets": [end, end + each.bytes]}
        end += each.bytes
    text = json.dumps(header).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for each in stored:
            for block in values(each):
                file.write(np.ascontiguousarray(block).data)
