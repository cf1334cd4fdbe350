"""A model folder for Hugging Face's libraries and for vLLM, written by streaming.

Everything is put into a temporary folder and renamed at the end: a crash or a full disk leaves nothing. What is in it
is the base's, byte for byte, but for what changed: weights, a vocabulary that grew, ends that were tied, the tokens
that end an answer. Memory is needed for the largest weight.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from hasten.errors import ConfigError, ModelError, StorageError
from hasten.export.hf.base import Opened
from hasten.export.hf.card import model_card
from hasten.export.hf.ends import ends_of
from hasten.export.hf.merged import MergedWeights
from hasten.export.hf.settings import GENERATION, chosen_dtype, generation_settings, with_dtype
from hasten.export.hf.shards import Encoding, Piece, Progress, size_of, write_files
from hasten.export.hf.tokenizer import SETTINGS, TOKENIZER, copied, vocabulary_size, write_tokenizer
from hasten.files import native_path, new_folder, require_space, require_writable, write_json, write_text
from hasten.loading.source import read_json

CONFIG, CARD = "config.json", "README.md"
MAX_SHARD = "5GB"
_KNOWN = (
    ".safetensors", ".safetensors.index.json", GENERATION, CONFIG, CARD, ".jinja", ".model", TOKENIZER, SETTINGS,
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
)  # fmt: skip
_MARGIN = 1 << 20
"""Bytes for what is small: settings, card, index."""


@dataclass(frozen=True)
class Written:
    """What was written."""

    folder: Path
    dtype: str
    """How weights are kept."""
    files: tuple[str, ...]
    """Those with weights."""
    nbytes: int
    """Of the weights."""
    tensors: int
    notes: list[str] = field(default_factory=list)
    """What is not as in the base, one sentence each."""


class Format(Encoding, Protocol):
    """How weights are kept in a folder, and what its configuration says of that."""

    said: str
    """In words."""

    def config(self, config: dict[str, Any]) -> dict[str, Any]:
        """A model's configuration, as it is for such weights."""
        ...


class PlainFormat:
    """All weights in one floating dtype.

    Args:
        dtype: its name in torch.
    """

    def __init__(self, dtype: str) -> None:
        self.said = dtype
        self.dtype: torch.dtype = getattr(torch, dtype)

    def pieces(self, name: str, shape: tuple[int, ...]) -> tuple[Piece, ...]:
        """The weight itself."""
        return (Piece(name, shape, self.dtype),)

    def encode(self, name: str, value: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The weight, rounded.

        Raises:
            ModelError: it holds NaN or infinity, in the dtype that it is written in.
        """
        made = value.to(self.dtype)
        require_finite(name, made)
        return (made,)

    def config(self, config: dict[str, Any]) -> dict[str, Any]:
        """With that dtype."""
        return with_dtype(config, self.said)


def write_model(
    opened: Opened,
    folder: Path,
    *,
    dtype: str | None = None,
    max_shard_size: str | int = MAX_SHARD,
    progress: Progress | None = None,
) -> Written:
    """Write a model folder of 16-bit or 32-bit weights.

    Args:
        opened: what is written.
        folder: where to; one that holds an older result of the same kind is replaced.
        dtype: ``bfloat16``, ``float16`` or ``float32``; None: bfloat16, or float16 where the base has that.
        max_shard_size: most bytes in a file: a number, or ``"5GB"``.
        progress: told bytes done, and in all.

    Raises:
        ConfigError: an unknown dtype or size, or a folder that holds something else.
        ModelError: the tokenizer has more tokens than the model, or cannot be loaded; a weight that is not finite.
        StorageError: the disk is full or not writable, or what was read back is not what was written.
    """
    made = PlainFormat(chosen_dtype(opened.weights.config, dtype))
    return write_as(opened, folder, made, max_shard_size=max_shard_size, progress=progress)


def write_as(
    opened: Opened,
    folder: Path,
    made: Format,
    *,
    max_shard_size: str | int = MAX_SHARD,
    progress: Progress | None = None,
) -> Written:
    """Write a model folder in any format; see `write_model`."""
    most = size_of(max_shard_size)
    folder = folder.expanduser()
    require_writable(folder)
    beside = copied(opened.base.folder)
    others = {path.name for path in beside}

    def is_foreign(name: str) -> bool:
        return name.startswith("adapter_") or not (name.endswith(_KNOWN) or name in others)

    require_replaceable(folder, opened, is_foreign)
    require_tokens(opened)
    pieces = [piece for name, shape in opened.weights.shapes.items() for piece in made.pieces(name, shape)]
    total = sum(piece.nbytes for piece in pieces)
    need = total + sum(path.stat().st_size for path in beside) + _MARGIN
    require_space(folder, need, "The exported model takes")
    notes = list(opened.weights.notes) if isinstance(opened.weights, MergedWeights) else []
    with new_folder(folder) as temporary:
        notes += write_tokenizer(opened.base.folder, opened.adapter, temporary)
        config = made.config(opened.weights.config)
        _write_settings(opened.base.folder / CONFIG, config, temporary / CONFIG)
        generation, changed = generation_settings(opened.base.folder, config, load_tokenizer(temporary))
        notes += changed
        _write_settings(opened.base.folder / GENERATION, generation, temporary / GENERATION)
        files = write_files(temporary, opened.weights, made, most, progress)
        write_text(temporary / CARD, model_card(opened, made.said, notes))
    return Written(folder, made.said, files, total, len(pieces), notes)


def require_finite(name: str, value: torch.Tensor) -> None:
    """Refuse a weight that cannot be computed with.

    Raises:
        ModelError: it holds NaN or infinity.
    """
    if not is_finite(value):
        raise ModelError(
            f"'{name}'",
            f"it holds NaN or infinity in {str(value.dtype).removeprefix('torch.')}",
            "Such a model is never written.",
            "Check the run; of a model with very large values, export float32 or bfloat16.",
        )


def is_finite(value: torch.Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity."""
    if not value.numel():
        return True
    least, most = value.aminmax()  # NaN is passed on; several times faster than looking at each value
    return bool(least.isfinite() and most.isfinite())


def require_tokens(opened: Opened) -> None:
    """Refuse a model whose tokenizer has tokens that the embedding has no rows for.

    Raises:
        ModelError: with both numbers.
    """
    embedding = ends_of(opened.weights.shapes)[0]
    tokens = vocabulary_size(opened.weights.folder)
    if embedding is None or tokens is None or tokens <= (rows := opened.weights.shapes[embedding][0]):
        return
    raise ModelError(
        str(opened.weights.folder),
        f"a tokenizer of {tokens} tokens for an embedding of {rows} rows",
        "Each token has a row of its own.",
        "Use the tokenizer that the model was trained with; save an adapter with the rows that were added.",
    )


def require_replaceable(folder: Path, opened: Opened, is_foreign: Callable[[str], bool]) -> None:
    """An existing folder is replaced as a whole, so it may hold only an older result of the same kind.

    Args:
        folder: where to.
        opened: what is exported; its base and its adapter are never replaced.
        is_foreign: whether a file of that name is no result of this kind.

    Raises:
        StorageError: it is a file.
        ConfigError: naming what it holds.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise StorageError(str(folder), "a file", "An export is a folder.", "Choose another name.")
    for place, what in ((opened.base.folder, "base model"), (opened.adapter, "adapter that is exported")):
        if place is not None and folder.samefile(place):
            rule = "It is what the export is made from."
            raise ConfigError(f"folder '{folder}'", f"it holds the {what}", rule, "Choose another folder.")
    foreign = next((name for name in sorted(entry.name for entry in folder.iterdir()) if is_foreign(name)), None)
    if foreign is not None:
        raise ConfigError(
            f"folder '{folder}'",
            f"it holds '{foreign}'",
            "An export replaces the folder as a whole, and an adapter and a merged model never share one.",
            "Choose another folder.",
        )


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer as others will load it, or None where there is none."""
    if not (folder / SETTINGS).is_file() and not (folder / TOKENIZER).is_file():
        return None
    from transformers import AutoTokenizer

    try:
        with native_path(folder) as place:
            return AutoTokenizer.from_pretrained(str(place))
    except (OSError, ValueError, LookupError, ImportError) as cause:
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        raise ModelError(
            "the tokenizer",
            f"transformers cannot load it ({lines[0][:200]})",
            "An exported folder holds a tokenizer that loads.",
            "Check the tokenizer's files beside the base model.",
        ) from cause


def _write_settings(own: Path, made: Mapping[str, Any], target: Path) -> None:
    """The base's file itself where it says the same."""
    if own.is_file() and read_json(own) == made:
        shutil.copyfile(own, target)
    else:
        write_json(target, made)
