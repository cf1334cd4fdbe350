"""What a model name means: the embedded model, a folder, an adapter folder, a GGUF file, a model of a local Ollama, or
a hub repository.

A name is never mapped to another repository: an existing local folder wins over a hub repository of the same name, and
what was chosen is printed. Folders are inspected before any loader runs, so that a missing file, pickle weights or
remote code end in one sentence instead of a stack of causes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hasten.errors import ModelError, did_you_mean, nearest
from hasten.loading import ollama_store

Kind = Literal["demo", "folder", "adapter", "gguf", "hub"]
DEMO = "demo"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class Source:
    """Where a model comes from."""

    kind: Kind
    name: str
    """As the user gave it; for local files an absolute path (of an Ollama model, its manifest's)."""

    @property
    def path(self) -> Path:
        """The folder or file of a local source."""
        return Path(self.name)


def resolve(
    name: str, *, allow_pickle: bool = False, allow_remote_code: bool = False, ollama: Path | None = None
) -> Source:
    """Find out what a model name means.

    Args:
        name: ``"demo"``, a folder, a ``.gguf`` file, ``ollama:NAME[:TAG]`` or a hub id such as ``org/name``.
        allow_pickle: accept a folder whose only weights are pickles, which can run code when loaded.
        allow_remote_code: accept a folder whose model is defined by Python files of its own.
        ollama: the store of a local Ollama; None: where Ollama keeps it.

    Raises:
        ModelError: nothing is there, it holds no weights, or it needs a permission that was not given.
    """
    if not name.strip():
        rule = "A model is 'demo', a folder, a .gguf file, ollama:NAME or a hub id."
        raise ModelError("the model", "no name", rule, "Name one.")
    if name == DEMO:
        return Source("demo", DEMO)
    if name.startswith(ollama_store.PREFIX):
        return Source("gguf", str(ollama_store.find_manifest(name, ollama).absolute()))
    path = Path(name).expanduser()
    if path.is_dir():
        return _inspect_folder(path.resolve(), allow_pickle=allow_pickle, allow_remote_code=allow_remote_code)
    if path.is_file():
        if ollama_store.is_manifest(path.absolute()):  # as runs on a model of Ollama's keep it
            return Source("gguf", str(path.absolute()))
        if path.suffix.lower() == ".gguf":
            return Source("gguf", str(path.resolve()))
        raise ModelError(name, "a file that is no GGUF", "A model is a folder or a .gguf file.", "Name its folder.")
    if _looks_like_path(name):
        remedy = _neighbours(path) or "Check the spelling and the working folder."
        raise ModelError(name, "no such file or folder", "A local model must exist.", remedy)
    if not _is_hub_id(name):
        rule = "A hub id is 'organisation/name' of letters, digits, '.', '_' and '-'."
        raise ModelError(name, "neither a local folder nor a hub id", rule, "Correct it, or use 'demo'.")
    return Source("hub", name)


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a model folder.

    Raises:
        ModelError: the file is not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as cause:  # not JSON, or not UTF-8
        rule = "A model folder's settings are JSON."
        raise ModelError(str(path), f"not valid JSON ({cause})", rule, "Download it again.") from cause
    except OSError as cause:
        raise _unreadable(path, cause) from cause
    if not isinstance(value, dict):
        raise ModelError(
            str(path), "not a JSON object", "A model folder's settings are an object.", "Download it again."
        )
    return value


def check_remote_code(config: dict[str, object], where: str, *, allowed: bool) -> None:
    """Refuse a model that only its own Python files define, unless allowed.

    Raises:
        ModelError: the model type is unknown to transformers, or remote code would be needed.
    """
    from transformers import CONFIG_MAPPING

    model_type = str(config.get("model_type") or "")
    if model_type in CONFIG_MAPPING:
        return
    if "auto_map" in config:
        if allowed:
            return
        raise ModelError(
            where,
            "it needs Python code from its own repository",
            "Code of others is not run unless you ask for it.",
            "Read that code, then pass trust_remote_code=True.",
        )
    raise ModelError(
        where,
        f"model_type {model_type!r}",
        "The installed transformers does not know this architecture.",
        did_you_mean(model_type, CONFIG_MAPPING.keys(), "Upgrade transformers, or check config.json."),
    )


def _unreadable(path: Path, cause: OSError) -> ModelError:
    reason = f"it cannot be read ({cause.strerror or cause})"
    return ModelError(str(path), reason, "A model is read from here.", "Check its permissions.")


def _inspect_folder(path: Path, *, allow_pickle: bool, allow_remote_code: bool) -> Source:
    try:
        files = sorted(entry.name for entry in path.iterdir() if entry.is_file())
    except OSError as cause:
        raise _unreadable(path, cause) from cause
    # Also beside a config.json: transformers would follow the adapter's base model, wherever that is.
    if "adapter_config.json" in files:
        _require_weights(path, files, "adapter_model", allow_pickle=allow_pickle)
        return Source("adapter", str(path))
    ggufs = [name for name in files if name.lower().endswith(".gguf")]
    if "config.json" not in files:
        if ggufs:
            raise ModelError(
                str(path), "a folder of GGUF files", "One file is one model.", f"Name it: '{path / ggufs[0]}'."
            )
        raise ModelError(
            str(path),
            f"no config.json among {len(files)} files",
            "A model folder has config.json, weights and a tokenizer; an adapter folder has adapter_config.json.",
            "Name the folder that holds them.",
        )
    config = read_json(path / "config.json")
    check_remote_code(config, str(path), allowed=allow_remote_code)
    _require_weights(path, files, "model", allow_pickle=allow_pickle)
    return Source("folder", str(path))


def _require_weights(path: Path, files: list[str], stem: str, *, allow_pickle: bool) -> None:
    if any(name.startswith(stem) and name.endswith(".safetensors") for name in files):
        _require_shards(path, files, f"{stem}.safetensors")
        return
    pickles = [name for name in files if name.startswith((stem, "pytorch_model")) and name.endswith(_PICKLES)]
    if not pickles:
        raise ModelError(
            str(path),
            "a folder without weights",
            f"It should hold {stem}.safetensors (or its shards).",
            "Download the weights again, or name another folder.",
        )
    if not allow_pickle:
        raise ModelError(
            str(path),
            f"only pickle weights ({pickles[0]})",
            "A pickle can run any code when it is loaded, so it is refused unless asked for.",
            "Convert it to safetensors, or pass use_safetensors=False if you trust its author.",
        )


def _require_shards(path: Path, files: list[str], whole: str) -> None:
    index = f"{whole}.index.json"
    if whole in files or index not in files:
        return
    shards = read_json(path / index).get("weight_map")
    missing = sorted(set(shards.values()).difference(files)) if isinstance(shards, dict) else []
    if missing:
        raise ModelError(
            str(path),
            f"{len(missing)} weight files are missing (first: {missing[0]})",
            f"All files that {index} names belong to the model.",
            "Download the weights again.",
        )


def _is_hub_id(name: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1 or name.lower().endswith(".gguf")


def _neighbours(path: Path) -> str | None:
    if not path.parent.is_dir():
        return f"The folder '{path.parent}' does not exist either."
    match = nearest(path.name, [entry.name for entry in path.parent.iterdir()])
    return f"Did you mean '{path.parent / match}'?" if match else None


def begins_inside(init: Any) -> bool:
    """Whether an adapter's `init_lora_weights` changes its base (PiSSA, OLoRA, CorDA)."""
    return isinstance(init, str) and init.startswith(("pissa", "olora", "corda"))
