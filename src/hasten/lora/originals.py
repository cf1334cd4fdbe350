"""The 16-bit weights that a 4-bit model was made from, read one at a time.

An adapter that was trained on 4-bit weights is better merged into what they were made from: their rounding is undone.
That is another base than it was trained on, by as much as `difference` says.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_INDEX = "model.safetensors.index.json"
_WHOLE = "model.safetensors"


class Originals:
    """Weights of a model folder, by name.

    Args:
        folder: with safetensors that are not quantized.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = folder / _INDEX
        if index.is_file():
            self.files: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        else:
            from safetensors import safe_open

            with safe_open(str(folder / _WHOLE), "pt") as file:
                self.files = dict.fromkeys(file.keys(), _WHOLE)
        self.missing: list[str] = []
        """4-bit weights that have no original of their name and shape."""
        self._squares = [0.0, 0.0]

    @classmethod
    def of(cls, base: Any) -> Originals | None:
        """Those of a 4-bit transformers model that was loaded from 16-bit files which are still there; or None.

        Args:
            base: the model; its `name_or_path` is a folder or a hub id. Nothing is downloaded.
        """
        folder = _folder(str(getattr(base, "name_or_path", "")))
        if folder is None or not ((folder / _INDEX).is_file() or (folder / _WHOLE).is_file()):
            return None
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return None if config.get("quantization_config") else cls(folder)

    def weight(self, name: str, kept: Any) -> Any:
        """The original of a 4-bit weight, or the 4-bit weight itself where there is none.

        Args:
            name: as the plain model has it.
            kept: the 4-bit weight's values.
        """
        if name not in self.files:
            self.missing.append(name)
            return kept
        from safetensors import safe_open

        with safe_open(str(self.folder / self.files[name]), "pt") as file:
            found = file.get_tensor(name)
        if found.shape != kept.shape:
            self.missing.append(name)
            return kept
        found = found.to(kept.device)
        self._squares[0] += float((found.float() - kept.float()).square().sum())
        self._squares[1] += float(found.float().square().sum())
        return found

    @property
    def difference(self) -> float:
        """How far the 4-bit weights that were asked for are from their originals, relative to these (norms)."""
        away, whole = self._squares
        return (away / whole) ** 0.5 if whole else 0.0


def _folder(place: str) -> Path | None:
    if Path(place).is_dir():
        return Path(place)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(place, "config.json")
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None
