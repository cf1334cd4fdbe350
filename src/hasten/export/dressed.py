"""A model with the tokenizer, template and generation settings that its exports have, in a folder of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hasten.export.hf.base import Opened
from hasten.export.hf.settings import GENERATION, generation_settings
from hasten.export.hf.tokenizer import write_tokenizer
from hasten.export.hf.write import load_tokenizer
from hasten.export.weights import Weights
from hasten.files import write_json


@dataclass(frozen=True)
class Dressed:
    """Weights whose folder has the files beside them as they are exported; a `Weights`."""

    weights: Weights
    folder: Path
    tokenizer: Any
    """As transformers loads it from there; None where there is none."""
    generation: Mapping[str, Any]
    notes: tuple[str, ...]

    @property
    def config(self) -> dict[str, Any]:
        """The model's."""
        return self.weights.config

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The model's."""
        return self.weights.shapes

    def read(self, name: str) -> torch.Tensor:
        """One of the model's weights."""
        return self.weights.read(name)


def dressed(opened: Opened, folder: Path) -> Dressed:
    """Put what is exported beside the weights into a folder.

    Args:
        opened: the model.
        folder: an empty one.

    Raises:
        ModelError: the tokenizer cannot be loaded.
    """
    notes = write_tokenizer(opened.base.folder, opened.adapter, folder)
    tokenizer = load_tokenizer(folder)
    generation, changed = generation_settings(opened.base.folder, opened.weights.config, tokenizer)
    write_json(folder / "config.json", opened.weights.config)
    write_json(folder / GENERATION, generation)
    return Dressed(opened.weights, folder, tokenizer, generation, (*notes, *changed))
