"""The model that an estimate is for, found without loading it.

Of a folder and a hub repository config.json and the headers of the safetensors files are read, of a GGUF (or an Ollama
model) its metadata; a config.json alone is enough. Nothing is converted, and of the hub only those parts are asked for,
and only where they are not in its cache.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from hasten.errors import ModelError
from hasten.loading import demo, ollama_store
from hasten.loading.gguf import folder_name
from hasten.loading.gguf_config import configuration
from hasten.loading.gguf_file import open_gguf
from hasten.loading.gguf_names import FORMS, form_of
from hasten.loading.model import LoadOptions, config_of
from hasten.loading.ollama_store import is_manifest, read_manifest
from hasten.loading.source import DEMO, check_remote_code, read_json

_LONGEST_HEADER = 100 << 20
"""The limit that the safetensors library has."""


@dataclass(frozen=True)
class Described:
    """A model's configuration, and what its files say of its weights."""

    name: str
    config: Any
    files_bytes: int | None = None
    """Of its weights on the disk; None where only config.json was looked at."""
    values: int | None = None
    """Weights in the files."""
    types: dict[str, int] = field(default_factory=dict)
    """Weights by type, as the files name it."""
    notes: tuple[str, ...] = ()


def describe(name: str, options: LoadOptions) -> Described:
    """Find a model.

    Args:
        name: ``demo``, a folder, a config.json, a ``.gguf`` file, ``ollama:NAME`` or a hub id; of an adapter, its base.
        options: revision and token of a hub repository; where converted models are kept.

    Raises:
        ModelError: nothing usable is there.
    """
    path = Path(name).expanduser()
    if path.is_file() and path.suffix.lower() == ".json":
        return _config_alone(path)
    if name.startswith(ollama_store.PREFIX):
        return _gguf(name, ollama_store.find_manifest(name, None))
    if path.is_file() and path.suffix.lower() == ".gguf":
        return _gguf(name, path)
    if name == DEMO:
        done = options.cache / "models" / folder_name(Path(demo.FILE).stem, demo.SHA256)
        return replace(_folder(done if done.is_dir() else demo.demo_folder(options.cache / "models")), name=name)
    if path.is_dir() and not (path / "adapter_config.json").is_file() and (path / "config.json").is_file():
        return _folder(path)
    config = config_of(name, options)
    if path.is_dir():
        return Described(name, config, notes=("an adapter: its base model is what is counted",))
    return _hub(name, config, options)


def _config_alone(path: Path) -> Described:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    values = read_json(path)
    check_remote_code(values, str(path), allowed=False)
    kind = str(values.pop("model_type"))
    try:
        config = AutoConfig.for_model(kind, **values)
    except (ValueError, TypeError, LookupError, ArithmeticError, StrictDataclassError) as cause:
        raise ModelError(
            str(path),
            f"transformers cannot read it ({str(cause)[:200]})",
            "It is a transformers configuration of a causal language model.",
            "Download it again.",
        ) from cause
    return Described(str(path), config)


def _folder(path: Path) -> Described:
    found = _config_alone(path / "config.json")
    files = sorted(path.glob("*.safetensors"))
    notes = [] if files else ["no safetensors files: counted from config.json alone"]
    values, types = 0, dict[str, int]()
    for file in files:
        for dtype, count in header_of(file).items():
            types[dtype] = types.get(dtype, 0) + count
            values += count
    size = sum(file.stat().st_size for file in files)
    return Described(str(path), found.config, size or None, values or None, types, tuple(notes))


def header_of(file: Path) -> dict[str, int]:
    """Values by type in a safetensors file: its header alone is read.

    Raises:
        ModelError: no safetensors file, or one that is cut off.
    """
    try:
        with file.open("rb") as opened:
            head = opened.read(8)
            (length,) = struct.unpack("<Q", head) if len(head) == 8 else (0,)
            text = opened.read(length) if 0 < length <= _LONGEST_HEADER else b""
        tensors = json.loads(text)
        found = _values_by_type(tensors, file.stat().st_size - 8 - length)
    except OSError as cause:
        reason = f"it cannot be read ({cause.strerror})"
        raise ModelError(str(file), reason, "A model is read from this file.", "Check its permissions.") from cause
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as cause:
        rule = "Its first bytes are a JSON header that names every tensor."
        raise ModelError(str(file), "not a safetensors file, or cut off", rule, "Download it again.") from cause
    return found


def _values_by_type(tensors: dict[str, Any], room: int) -> dict[str, int]:
    """What a header says; a ValueError where it speaks of more than the `room` bytes behind it."""
    found: dict[str, int] = {}
    for name, tensor in tensors.items():
        if name == "__metadata__":
            continue
        begin, end = tensor["data_offsets"]
        if not 0 <= begin <= end <= room:
            raise ValueError(name)
        count = 1
        for size in tensor["shape"]:
            count *= int(size)
        found[str(tensor["dtype"])] = found.get(str(tensor["dtype"]), 0) + count
    return found


def _gguf(name: str, path: Path) -> Described:
    path = read_manifest(path).weights if is_manifest(path) else path
    file = open_gguf(path)
    form = form_of(file)
    if form is None:
        raise ModelError(
            name,
            f"architecture '{file.arch}'",
            f"Read without converting it are {', '.join(FORMS)}.",
            "Name the model's Hugging Face folder or hub id.",
        )
    config = configuration(file, form)
    types: dict[str, int] = {}
    for tensor in file.tensors.values():
        kind = tensor.tensor_type.name
        types[kind] = types.get(kind, 0) + int(tensor.n_elements)
    size = sum(part.stat().st_size for part in file.parts)
    note = "a GGUF is converted once, to 16 or 32 bits; training starts from those values"
    return Described(name, config, size, sum(types.values()), types, (note,))


def _hub(name: str, config: Any, options: LoadOptions) -> Described:
    from huggingface_hub import try_to_load_from_cache

    for file in ("model.safetensors", "model.safetensors.index.json"):
        cached = try_to_load_from_cache(name, file, revision=options.revision)
        if isinstance(cached, str):
            return replace(_folder(Path(cached).parent), name=name, config=config)
    return _hub_headers(name, config, options)


def _hub_headers(name: str, config: Any, options: LoadOptions) -> Described:
    from huggingface_hub import get_safetensors_metadata
    from huggingface_hub.errors import (
        HfHubHTTPError,
        NotASafetensorsRepoError,
        OfflineModeIsEnabled,
        SafetensorsParsingError,
    )

    # The root of the hub client's HTTP library, whichever that is (as in data/readers/hub_set.py).
    http_error = cast(type[Exception], HfHubHTTPError.__bases__[0])
    try:
        found = get_safetensors_metadata(name, revision=options.revision, token=options.token)
    except NotASafetensorsRepoError:
        return Described(name, config, notes=("the repository has no safetensors weights; hasten refuses pickles",))
    except (HfHubHTTPError, OfflineModeIsEnabled, SafetensorsParsingError, OSError, http_error) as cause:
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0][:200]
        return Described(name, config, notes=(f"the weights' headers were not read ({reason})",))
    types = {str(dtype): int(count) for dtype, count in found.parameter_count.items()}
    return Described(name, config, None, sum(types.values()), types)
