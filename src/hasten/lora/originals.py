"""The 16-bit weights that a 4-bit model was made from, read one at a time.

An adapter that was trained on 4-bit weights is better merged into what they were made from: their rounding is undone.
That is another base than it was trained on, by as much as `difference` says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_INDEX = "model.safetensors.index.json"
_WHOLE = "model.safetensors"


class Originals:
    """Weights of a model folder, by name.

    Args:
        folder: with safetensors that are not quantized.
        wanted: shapes of the 4-bit weights, by the names of the plain model.
    """

    def __init__(self, folder: Path, wanted: Mapping[str, tuple[int, ...]]) -> None:
        self.folder = folder
        index = folder / _INDEX
        files: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"] if index.is_file() else {}
        self.files = {name: files.get(name, _WHOLE) for name in wanted}
        self.missing = sorted(name for name, shape in wanted.items() if self._shape(name) != tuple(shape))
        """4-bit weights that have no original of their name and shape."""
        self._squares: dict[str, tuple[float, float]] = {}

    @classmethod
    def of(cls, base: Any, wanted: Mapping[str, tuple[int, ...]]) -> Originals | None:
        """Those of a 4-bit transformers model that was loaded from 16-bit files which are still there; or None.

        Args:
            base: the model; its `name_or_path` is a folder or a hub id. Nothing is downloaded.
            wanted: as above.
        """
        folder = _folder(str(getattr(base, "name_or_path", "")), getattr(base.config, "_commit_hash", None))
        if folder is None:
            return None
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        found = None if config.get("quantization_config") else cls(folder, wanted)
        return found if found is not None and len(found.missing) < len(wanted) else None

    def weight(self, name: str, kept: Any) -> Any:
        """The original of a 4-bit weight, or the 4-bit weight itself where there is none.

        Args:
            name: as the plain model has it.
            kept: the 4-bit weight's values.
        """
        if name in self.missing:
            return kept
        from safetensors import safe_open

        with safe_open(str(self.folder / self.files[name]), "pt") as file:
            found = file.get_tensor(name).to(kept.device)
        away = float((found.float() - kept.float()).square().sum())
        self._squares[name] = away, float(found.float().square().sum())
        return found

    @property
    def difference(self) -> float:
        """How far the 4-bit weights that were asked for are from their originals, relative to these (norms)."""
        away, whole = (sum(part) for part in zip(*self._squares.values(), strict=True)) if self._squares else (0.0, 0.0)
        return (away / whole) ** 0.5 if whole else 0.0

    def _shape(self, name: str) -> tuple[int, ...] | None:
        file = self.folder / self.files[name]
        if not file.is_file():
            return None
        from safetensors import safe_open

        with safe_open(str(file), "pt") as opened:
            return tuple(opened.get_slice(name).get_shape()) if name in opened.keys() else None  # noqa: SIM118


def _folder(place: str, revision: str | None) -> Path | None:
    """A folder that is here; of a hub id, the very revision that was loaded."""
    if (Path(place) / "config.json").is_file():
        return Path(place)
    if revision is None:
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(place, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None
