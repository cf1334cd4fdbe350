"""What is exported: a model's configuration and its weights, read one at a time.

A plain folder is one such; a base with an adapter on it is another (`hasten.export.hf.merged`). Whatever writes a
format takes weights from here, so that no target needs a second target's files, nor memory for more than one weight.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open

from hasten.errors import ModelError

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
        config = folder / "config.json"
        if not config.is_file():
            raise ModelError(str(folder), "it has no config.json", "A model folder has one.", "Name another folder.")
        self.config: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))
        if self.config.get("quantization_config"):
            raise ModelError(
                str(folder),
                "its weights are quantized",
                "Exports are made from 16-bit or 32-bit weights.",
                "Name the model that it was quantized from.",
            )

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every weight's shape, by its name, in the order of the files."""
        found: dict[str, tuple[int, ...]] = {}
        for file in self.files:
            with safe_open(str(file), "pt") as opened:
                for name in opened.keys():  # noqa: SIM118
                    found[name] = tuple(opened.get_slice(name).get_shape())
                    self._file_of[name] = file
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
        if index.is_file():
            names = dict.fromkeys(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        files = tuple(self.folder / name for name in names)
        for file in files:
            if not file.is_file():
                raise ModelError(str(file), "it is not there", "A folder holds all of its shards.", "Copy it again.")
        return files

    @cached_property
    def _file_of(self) -> dict[str, Path]:
        return {}
