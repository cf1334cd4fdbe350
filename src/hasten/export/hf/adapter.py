"""An adapter's folder for PEFT and vLLM on another computer.

Its tensors are the trained ones; an adapter that began as what 4 bits lost is written as a plain one of twice the rank,
which fits the 16-bit weights. The base is named so that others find it: a hub id with its commit, or a path from this
folder; never a path of this computer. ``base.json`` holds a hash of the base's configuration, by which a later export
notices another base.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from hasten.errors import ConfigError, ModelError
from hasten.export.hf.adapter_file import CONFIG, WEIGHTS, AdapterFile
from hasten.export.hf.base import BASE, Opened, config_hash
from hasten.export.hf.tokenizer import copied, write_tokenizer
from hasten.export.hf.write import CARD, Written, is_finite, require_replaceable, require_tokens
from hasten.files import new_folder, require_space, require_writable, write_json, write_text
from hasten.loading.beginning import FILE, read_beginning
from hasten.loading.ollama_store import is_manifest, name_of
from hasten.loading.plain_adapter import write_plain
from hasten.loading.source import DEMO, read_json

_KNOWN = (CONFIG, WEIGHTS, FILE, BASE, CARD, ".jinja", "tokenizer.json", "tokenizer_config.json", ".model")
_KNOWN += ("special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt")
_MARGIN = 1 << 20
_NAME = "base_model_name_or_path"
_UNLOADABLE = (
    "which hasten finds, and PEFT and vLLM do not load: for these export the merged model (--to hf), or name the "
    "safetensors that it was made from (--base)"
)


def write_adapter(opened: Opened, folder: Path) -> Written:
    """Write an adapter's folder.

    Args:
        opened: with an adapter.
        folder: where to; one that holds an older adapter is replaced.

    Raises:
        ConfigError: there is no adapter, or the folder holds something else.
        ModelError: a tensor holds NaN or infinity, the tokenizer has more tokens than the model, or the adapter's
            beginning belongs to another one.
        StorageError: the disk is full or not writable.
    """
    if opened.adapter is None:
        rule = "An adapter is what a run trained on a base."
        raise ConfigError("adapter", f"'{opened.base_name}' is a whole model", rule, "Name a run or an adapter folder.")
    folder = folder.expanduser()
    require_writable(folder)
    beside = copied(opened.base.folder)
    others = {path.name for path in beside}

    def is_foreign(name: str) -> bool:
        return name == "config.json" or not (name.endswith(_KNOWN) or name in others)

    require_replaceable(folder, opened, is_foreign)
    require_tokens(opened)
    weights = opened.adapter / WEIGHTS
    began = (opened.adapter / FILE).is_file()
    size = weights.stat().st_size * (2 if began else 1)
    need = size + sum(path.stat().st_size for path in beside) + _MARGIN
    require_space(folder, need, "The exported adapter takes")
    notes: list[str] = []
    with new_folder(folder) as temporary:
        notes += write_tokenizer(opened.base.folder, opened.adapter, temporary)
        if began:
            from peft import LoraConfig

            state = load_file(weights)
            config = LoraConfig.from_pretrained(str(opened.adapter))
            write_plain(state, read_beginning(opened.adapter / FILE, weights), config, temporary)
            notes.append("the adapter began as what 4 bits lost: written as a plain one of twice the rank")
        else:
            shutil.copyfile(weights, temporary / WEIGHTS)
            shutil.copyfile(opened.adapter / CONFIG, temporary / CONFIG)
        _require_finite(temporary, opened.adapter)
        name, changed = _base_name(opened, folder)
        notes += changed
        settings = {**read_json(temporary / CONFIG), _NAME: name, "revision": opened.revision, "inference_mode": True}
        write_json(temporary / CONFIG, settings)
        write_json(temporary / BASE, {"name": name, "revision": opened.revision, **_facts(opened)})
        write_text(temporary / CARD, _card(name, settings))
    nbytes = (folder / WEIGHTS).stat().st_size
    return Written(folder, "adapter", (WEIGHTS,), nbytes, len(load_file(folder / WEIGHTS)), notes)


def _require_finite(written: Path, adapter: Path) -> None:
    """Refuse an adapter that cannot be computed with."""
    file = AdapterFile(written)
    broken = next((name for name in file.shapes if not is_finite(file.read(name))), None)
    if broken is not None:
        raise ModelError(
            f"'{broken}' in {adapter}",
            "it holds NaN or infinity",
            "Such an adapter is never written.",
            "Check the run; an earlier checkpoint of it may be whole.",
        )


def _base_name(opened: Opened, folder: Path) -> tuple[str, list[str]]:
    """What the base is called elsewhere, and what should be known of that."""
    name = opened.base_name
    if name == DEMO:
        return name, ["the base is hasten's embedded model: other programs are told where theirs is"]
    path = Path(name)
    if not path.is_absolute():
        return name, []
    if is_manifest(path):
        called = name_of(path)
        return called, [f"the base '{called}' is a model of Ollama's, {_UNLOADABLE}"]
    place, notes = _near(path, folder)
    return place, [*notes, *([f"the base '{place}' is a GGUF file, {_UNLOADABLE}"] if path.is_file() else [])]


def _near(path: Path, folder: Path) -> tuple[str, list[str]]:
    """A local base as it is found from the adapter's folder, where both lie in a folder that can be moved."""
    name = str(path)
    shared = Path(os.path.commonpath([Path(name).resolve(), folder.resolve()]))
    if shared == Path(shared.anchor) or shared == Path.home():
        place = Path(name).name
        return place, [f"the base is called '{place}': whoever loads the adapter names its folder"]
    return Path(os.path.relpath(Path(name).resolve(), folder.resolve())).as_posix(), []


def _facts(opened: Opened) -> dict[str, Any]:
    return {"config_sha256": config_hash(opened.base.folder), "model_type": opened.base.config.get("model_type")}


def _card(name: str, settings: dict[str, Any]) -> str:
    head = ["---", "library_name: peft", "pipeline_tag: text-generation"]
    named = not name.startswith(".") and "/" in name
    head += [f"base_model: {name}"] if named else []
    text = f"A LoRA adapter (rank {settings.get('r')}, alpha {settings.get('lora_alpha'):g}) for {name}."
    return "\n".join([*head, "tags:", "- hasten", "- lora", "---", "", "# Adapter", "", text, ""])
