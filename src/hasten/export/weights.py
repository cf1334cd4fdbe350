"""What is exported: a model's configuration and its weights, read one at a time.

A plain folder is one such; a base with an adapter on it is another (`hasten.export.hf.merged`). Whatever writes a
format takes weights from here, so that no target needs a second target's files, nor memory for more than one weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from hasten.errors import ModelError
from hasten.loading.source import read_json

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"


class Weights(Protocol):
    """A model as exporters see it."""

    @property
    def folder(self) -> Path:
        """Where the tokenizer's files are."""
        ...

    @property
    def config(self) -> dict[str, Any]:
        """What config.json says of the model that is exported."""
        ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every weight's shape, by its name in a checkpoint, in the order of the files."""
        ...

    def read(self, name: str) -> torch.Tensor:
        """One weight, on the CPU, in the dtype that the checkpoint keeps it in."""
        ...


class PlainFolder:
    """A model folder whose safetensors are not quantized.

    Args:
        folder: config.json, safetensors, tokenizer.

    Raises:
        ModelError: a file is missing, or the weights are quantized.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / "config.json").is_file():
            raise ModelError(str(folder), "it has no config.json", "A model folder has one.", "Name another folder.")
        self.config: dict[str, Any] = read_json(folder / "config.json")
        if self.config.get("quantization_config"):
            raise ModelError(
                str(folder),
                "its weights are quantized",
                "Exports are made from 16-bit or 32-bit weights.",
                "Name the model that it was quantized from.",
            )

    @classmethod
    def of_any(cls, folder: Path, config: dict[str, Any]) -> PlainFolder:
        """What a folder's files hold, tensor by tensor, whatever they mean: for readers of quantized ones.

        Args:
            folder: with safetensors.
            config: what `config` is to be.
        """
        made = cls.__new__(cls)
        made.folder, made.config = folder, config
        return made

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every weight's shape, by its name, in the order of the files.

        Raises:
            ModelError: a file is missing or damaged.
        """
        return self._shapes

    @cached_property
    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        for file in self.files:
            try:
                with safe_open(str(file), "pt") as opened:
                    for name in opened.keys():  # noqa: SIM118
                        found[name] = tuple(opened.get_slice(name).get_shape())
                        self._file_of[name] = file
            except SafetensorError as cause:
                rule = "Weights are read from safetensors files that are whole."
                raise ModelError(str(file), f"it cannot be read ({cause})", rule, "Copy it again.") from cause
        return found

    def read(self, name: str) -> torch.Tensor:
        """One weight, as the file keeps it."""
        assert name in self.shapes, "names come from `shapes`"
        with safe_open(str(self._file_of[name]), "pt") as opened:
            return opened.get_tensor(name)

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The files of weights, in order."""
        index = self.folder / INDEX
        names = {WHOLE: None}
        if index.is_file() and not (self.folder / WHOLE).is_file():  # as transformers chooses
            shards: Any = read_json(index).get("weight_map")
            if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
                rule = "An index says which weight is in which file."
                raise ModelError(str(index), "it has no weight_map of file names", rule, "Copy it again.")
            names = dict.fromkeys(shards.values())
            if odd := next((name for name in names if Path(name).name != name), None):
                rule = "Shards are files of the model's own folder."
                raise ModelError(str(index), f"it names '{odd}'", rule, "Do not use that folder.")
        files = tuple(self.folder / name for name in names)
        for file in files:
            if not file.is_file():
                rule = "A model's weights are in safetensors files, and all of its shards are in its folder."
                raise ModelError(str(file), "it is not there", rule, "Copy it again; pickles are not read.")
        return files

    @cached_property
    def _file_of(self) -> dict[str, Path]:
        return {}
