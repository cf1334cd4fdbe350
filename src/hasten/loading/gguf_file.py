"""A GGUF file as it lies on the disk: its fields and tensors, checked before anything is made of them.

Nothing is copied: tensors are views of a memory-mapped file. A model that was split into several files
(``-00001-of-00003.gguf``) is one model here, whichever of them is named.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten.errors import ModelError
from hasten.loading import gguf_fields, gguf_lengths

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor

_VERSIONS = (2, 3)
_PART = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$", re.IGNORECASE)
_OTHERS = {
    "adapter": ("a LoRA adapter", "Name the base model's file; GGUF adapters are not read."),
    "mmproj": ("the image part of a model", "Name the file of its language model."),
    "imatrix": ("an importance matrix", "Name the model's file."),
}


@dataclass(frozen=True)
class GgufFile:
    """An open GGUF model."""

    path: Path
    """The (first) file."""
    parts: tuple[Path, ...]
    """All files of the model, `path` first."""
    fields: Mapping[str, Any]
    """Metadata by name, as plain Python values."""
    tensors: Mapping[str, ReaderTensor]
    """By name, in the order of the files; ``data`` is ``[rows, ...]`` in the tensor's own type."""

    @property
    def arch(self) -> str:
        """``general.architecture``."""
        return str(self.fields.get("general.architecture", ""))

    def own(self, key: str, default: Any = None) -> Any:
        """A field of the architecture, e.g. ``block_count``."""
        return self.fields.get(f"{self.arch}.{key}", default)

    def need(self, key: str) -> Any:
        """A field of the architecture that every model has.

        Raises:
            ModelError: it is missing.
        """
        value = self.own(key)
        if value is None:
            raise ModelError(
                str(self.path),
                f"no field '{self.arch}.{key}'",
                "A model's shape is read from its metadata.",
                "Convert it again with a current converter.",
            )
        return value

    def size(self, key: str, otherwise: int | None = None, *, least: int = 1, most: int = gguf_fields.SIZES) -> int:
        """A whole number of the architecture's fields.

        Args:
            key: without the architecture's name.
            otherwise: what it is where the file has none, or 0; None: every model has it.
            least: the smallest that makes sense.
            most: the largest.

        Raises:
            ModelError: it is missing, no whole number, or out of bounds.
        """
        value = self.need(key) if otherwise is None else self.own(key)
        if otherwise is not None and (value is None or value == 0):
            return otherwise
        return gguf_fields.whole(self.path, f"{self.arch}.{key}", value, least=least, most=most)

    def number(self, key: str, otherwise: float | None = None, *, positive: bool = False) -> float:
        """A number of the architecture's fields.

        Raises:
            ModelError: it is missing, none, or not above zero where it must be.
        """
        value = self.need(key) if otherwise is None else self.own(key, otherwise)
        return gguf_fields.number(self.path, f"{self.arch}.{key}", value, positive=positive)


def parts_of(path: Path) -> tuple[Path, ...]:
    """All files of the model that a file belongs to, the first one first.

    Raises:
        ModelError: it is part of a split model, and another part is missing.
    """
    found = _PART.match(path.name)
    if found is None:
        return (path,)
    count = int(found["count"])
    parts = tuple(path.with_name(f"{found['stem']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1))
    missing = [part.name for part in parts if part != path and not part.is_file()]
    if missing:
        raise ModelError(
            str(path),
            f"{len(missing)} of the model's {count} files are missing (first: {missing[0]})",
            "A model that was split is loaded from all its files.",
            "Put them into the same folder.",
        )
    return parts


def require_gguf(path: Path) -> None:
    """Refuse what is no GGUF, or none of a version and byte order that is read.

    Raises:
        ModelError: with what it is instead.
    """
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as cause:
        reason = f"it cannot be read ({cause.strerror})"
        raise ModelError(str(path), reason, "A model is read from this file.", "Check its permissions.") from cause
    if head[:4] != b"GGUF":
        rule = "Its first four bytes must be 'GGUF'."
        raise ModelError(str(path), "not a GGUF file", rule, "Download it again.")
    if len(head) < 8:
        raise _broken(path, "it ends after its first bytes")
    (version,), (swapped,) = struct.unpack("<I", head[4:]), struct.unpack(">I", head[4:])
    if version in _VERSIONS:
        return
    if swapped in _VERSIONS:
        raise ModelError(
            str(path),
            "a GGUF for big-endian machines",
            "Numbers are read in this machine's order.",
            "Use the model's ordinary (little-endian) file.",
        )
    raise ModelError(
        str(path),
        f"GGUF version {version}",
        f"Versions {' and '.join(map(str, _VERSIONS))} are read.",
        "Convert the model again with a current converter.",
    )


def open_gguf(path: Path) -> GgufFile:
    """Open a GGUF model.

    Args:
        path: its file, or any file of a split model.

    Raises:
        ModelError: no GGUF, cut off, of another byte order, split with parts missing, or no model at all.
    """
    parts = parts_of(path)
    readers = [_reader(part) for part in parts]
    fields = {name: _value(part, field) for part, reader in [(parts[0], readers[0])] for name, field in _own(reader)}
    tensors: dict[str, ReaderTensor] = {}
    for part, reader in zip(parts, readers, strict=True):
        for tensor in reader.tensors:
            if tensor.name in tensors:
                raise _broken(part, f"tensor '{tensor.name}' comes twice")
            tensors[tensor.name] = tensor
    _require_all(parts, fields, len(tensors))
    _require_model(path, fields)
    return GgufFile(parts[0], parts, fields, tensors)


def _reader(path: Path) -> GGUFReader:
    from gguf import GGUFReader

    require_gguf(path)
    try:
        if (fault := gguf_lengths.fault(path)) is not None:
            raise _broken(path, fault)
        return GGUFReader(path)
    except (ValueError, LookupError, OverflowError, struct.error) as cause:
        reason = str(cause).strip().splitlines() or [type(cause).__name__]
        if "GGMLQuantizationType" in reason[0]:
            raise ModelError(
                str(path),
                f"a tensor type that the gguf package does not know ({reason[0][:200]})",
                "Weights are decoded by that package.",
                "Upgrade it (pip install --upgrade gguf), or use the model's Hugging Face folder.",
            ) from cause
        raise _broken(path, reason[0][:300]) from cause
    except OSError as cause:
        reason = f"it cannot be read ({cause.strerror})"
        raise ModelError(str(path), reason, "A model is read from this file.", "Check its permissions.") from cause


def _own(reader: GGUFReader) -> list[tuple[str, Any]]:
    return [(name, field) for name, field in reader.fields.items() if not name.startswith("GGUF.")]


def _value(path: Path, field: Any) -> Any:
    try:
        return field.contents()
    except (ValueError, LookupError) as cause:
        raise _broken(path, f"field '{field.name}': {cause}") from cause


def _require_all(parts: tuple[Path, ...], fields: Mapping[str, Any], tensors: int) -> None:
    count = gguf_fields.whole(parts[0], "split.count", fields.get("split.count") or 1)
    if count != len(parts):
        raise ModelError(
            str(parts[0]),
            f"one of {count} files of a model, but its name does not say so",
            "The files of a split model are named '...-00001-of-00003.gguf'.",
            "Give all of them their names back.",
        )
    wanted = gguf_fields.whole(parts[0], "split.tensors.count", fields.get("split.tensors.count") or tensors)
    if wanted != tensors:
        raise _broken(parts[0], f"{tensors} of {wanted} tensors in its {count} files")


def _require_model(path: Path, fields: Mapping[str, Any]) -> None:
    kind = gguf_fields.text(path, "general.type", fields.get("general.type", "model"))
    if kind in _OTHERS:
        what, remedy = _OTHERS[kind]
        raise ModelError(str(path), what, "A trainable base is a whole model.", remedy)
    if not fields.get("general.architecture"):
        raise ModelError(
            str(path), "no field 'general.architecture'", "It says which model this is.", "Download it again."
        )
    gguf_fields.text(path, "general.architecture", fields["general.architecture"])


def _broken(path: Path, reason: str) -> ModelError:
    return ModelError(
        str(path),
        f"a damaged GGUF ({reason})",
        "It is cut off, or was written wrongly.",
        "Download it again, or use the model's Hugging Face folder instead.",
    )
