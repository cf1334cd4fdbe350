"""A GGUF file becomes an ordinary model folder: converted once, cached by content.

Converting gives plain safetensors that transformers, peft and every exporter read, with the values of the file
(`gguf_tensors`), a configuration from its metadata (`gguf_config`) and the tokenizer that its vocabulary describes
(`gguf_tokenizer`). transformers' own conversion is left for architectures that have no table here; the folder says so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hasten.errors import ModelError
from hasten.files import make_folder, new_folder
from hasten.loading import gguf_fields, gguf_tensors
from hasten.loading.gguf_config import configuration, layers_of
from hasten.loading.gguf_file import GgufFile, open_gguf, parts_of, require_gguf
from hasten.loading.gguf_names import FORMS, Form, form_of
from hasten.loading.gguf_numbers import plain
from hasten.loading.gguf_tokenizer import end_tokens, tokenizer_files
from hasten.loading.ollama_store import OllamaModel, is_manifest, read_manifest

_READ_BYTES = 1 << 20
_CONVERSION = 4
"""Raised when the conversion changes what it writes, so that folders made before are not taken."""
NOTES = "converted.json"
"""What a folder says of its conversion: the file, notes, and what an Ollama model had beside its weights."""
_SAMPLING = {"temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
_SPELLED = {"temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
"""Ollama's parameters -> transformers'. Its repetition penalty looks at the last tokens only, and has no twin."""


def sha256(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal text."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def folder_name(stem: str, content: str) -> str:
    """The name of a converted model's folder: the file's own, its SHA-256, and which conversion made it."""
    return f"{stem}-{content[:16]}-v{_CONVERSION}"


def model_folder(path: Path, cache: Path) -> Path:
    """The folder with the weights and the tokenizer of a GGUF model; converted if it is not cached yet.

    Args:
        path: the GGUF file (any file of a split model), or a manifest in an Ollama store.
        cache: the folder that keeps converted models.

    Raises:
        ModelError: the file is no GGUF, damaged, or of an architecture that is not known.
        StorageError: the cache cannot be written, or has no room for the model.
    """
    ollama = read_manifest(path) if is_manifest(path) else None
    file = ollama.weights if ollama is not None else path
    parts = parts_of(file)
    for part in parts:
        require_gguf(part)
    if ollama is not None:
        stem, content = ollama.stem, ollama.digest
    else:
        stem, content = parts[0].stem, _content(parts)
    folder = cache / folder_name(stem, content)
    if folder.is_dir():
        return folder
    make_folder(cache)
    with new_folder(folder) as temporary:
        _convert(file, temporary, ollama)
    return folder


def notes(folder: Path) -> list[str]:
    """What is to be known of a converted folder, one sentence each; none of any other folder."""
    return list(_converted(folder).get("notes", []))


def system_text(folder: Path) -> str | None:
    """The system text that an Ollama model has beside its weights."""
    return _converted(folder).get("system")


def _converted(folder: Path) -> dict[str, Any]:
    file = folder / NOTES
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _content(parts: Sequence[Path]) -> str:
    try:
        digests = [sha256(part) for part in parts]
    except OSError as cause:
        reason = f"it cannot be read ({cause.strerror})"
        raise ModelError(str(parts[0]), reason, "A model is read from this file.", "Check its permissions.") from cause
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _convert(path: Path, target: Path, ollama: OllamaModel | None) -> None:
    file = open_gguf(path)
    form = form_of(file)
    said = _by_us(file, form, target) if form is not None else _by_transformers(file, target)
    record: dict[str, Any] = {"file": path.name, "architecture": file.arch, "notes": said}
    if ollama is not None:
        record |= {"model": ollama.name, "system": ollama.system, "parameters": ollama.parameters}
        said += ollama.notes
        _generation(target, {theirs: ollama.parameters.get(ours) for ours, theirs in _SPELLED.items()})
    _write(target / NOTES, record)


def _by_us(file: GgufFile, form: Form, target: Path) -> list[str]:
    config = configuration(file, form)
    tokenizer = tokenizer_files(file)
    stored = gguf_tensors.plan(file, form, config)
    config.dtype = gguf_tensors.main_type(stored)
    config.architectures = [_class_name(config)]
    config.save_pretrained(target)
    _write(target / "tokenizer.json", tokenizer.tokenizer)
    settings = dict(tokenizer.config)
    if tokenizer.template is not None:  # in both places that readers look at
        settings["chat_template"] = tokenizer.template
        (target / "chat_template.jinja").write_text(tokenizer.template, encoding="utf-8", newline="")
    _write(target / "tokenizer_config.json", settings)
    ends = end_tokens(file)
    _write(
        target / "generation_config.json",
        {
            "bos_token_id": config.bos_token_id,
            "eos_token_id": ends if len(ends) > 1 else config.eos_token_id,
            "pad_token_id": config.pad_token_id,
        },
    )
    _generation(target, {ours: _sampling(file, theirs) for theirs, ours in _SAMPLING.items()})
    gguf_tensors.write(stored, target)
    return list(tokenizer.notes)


def _sampling(file: GgufFile, name: str) -> float | None:
    key = f"general.sampling.{name}"
    value = file.fields.get(key)
    if value is None:
        return None
    gguf_fields.number(file.path, key, value)
    return value  # a whole number stays one


def _class_name(config: Any) -> str:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type])


def _generation(folder: Path, values: dict[str, Any]) -> None:
    """Settings of sampling that the model comes with; none: its generation stays greedy."""
    given = {name: plain(value) if isinstance(value, float) else value for name, value in values.items() if value}
    if not given:
        return
    path = folder / "generation_config.json"
    _write(path, {**json.loads(path.read_text(encoding="utf-8")), **given, "do_sample": True})


def _by_transformers(file: GgufFile, target: Path) -> list[str]:
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    if len(file.parts) > 1:
        raise _unknown(file, f"transformers reads one file, and this model has {len(file.parts)}")
    there = layers_of(file)
    stated = file.size("block_count", there)
    if there > stated:
        raise _unknown(file, f"transformers would leave out {there - stated} of its {there} layers (block_count)")
    where = {"pretrained_model_name_or_path": str(file.path.parent), "gguf_file": file.path.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        made: Any = AutoModelForCausalLM.from_pretrained(
            **where, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True), output_loading_info=True
        )
        model, found = made
    except (  # what its code runs into where metadata are not what it expects
        ValueError, TypeError, LookupError, AttributeError, ArithmeticError, OSError, RuntimeError,
        StrictDataclassError,
    ) as cause:  # fmt: skip
        reason = " ".join(line.strip() for line in str(cause).splitlines()).strip() or type(cause).__name__
        raise _unknown(file, f"transformers cannot read it ({reason[:300]})") from cause
    if found["missing_keys"]:
        first = sorted(found["missing_keys"])[0]
        raise _unknown(
            file, f"transformers leaves {len(found['missing_keys'])} weights without values (first: {first})"
        )
    _name_special_tokens(tokenizer, file)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return [
        f"the GGUF's architecture '{file.arch}' was converted by transformers; its tokenizer may cut text otherwise"
    ]


def _unknown(file: GgufFile, reason: str) -> ModelError:
    return ModelError(
        str(file.path),
        f"architecture '{file.arch}': {reason}",
        f"Converted by hasten itself are {', '.join(FORMS)}.",
        "Use the model's Hugging Face folder.",
    )


def _name_special_tokens(tokenizer: Any, file: GgufFile) -> None:
    """Set begin, end, unknown and padding token as the file says; transformers 5.17 takes the wrong end token."""
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    for name, theirs in names.items():
        key = f"tokenizer.ggml.{theirs}_token_id"
        if (value := file.fields.get(key)) is not None:
            number = gguf_fields.whole(file.path, key, value, most=len(tokenizer) - 1)
            setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(number))


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
