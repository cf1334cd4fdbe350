"""Loading a model: any `Source` becomes a plain `PreTrainedModel` (or `PeftModel`) and its tokenizer.

Only transformers, peft and bitsandbytes load weights; this file decides nothing (dtype, device and storage come from
the Plan) and adds what they leave out: errors in one sentence, adapters that are loaded completely or not at all, and
a padding token where the tokenizer has none.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hasten.errors import MissingPackageError, ModelError
from hasten.loading import demo, gguf
from hasten.loading.source import Source, check_remote_code, read_json, resolve

CACHE = Path.home() / ".cache" / "hasten"
_ADAPTER_CONFIG = "adapter_config.json"


@dataclass
class Loaded:
    """A model ready for adaptation or generation."""

    model: Any
    """`PreTrainedModel`, or `PeftModel` when an adapter was named."""
    tokenizer: Any
    """The model's own tokenizer."""
    source: Source
    """What was named."""
    base: Source
    """Where the base weights came from (equal to `source` without an adapter)."""
    notes: list[str] = field(default_factory=list)
    """What was changed on the way, one sentence each."""


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How to load; the Plan decides the first three."""

    device: str = "cpu"
    dtype: str = "float32"
    load_in_4bit: bool = False
    revision: str | None = None
    token: str | None = None
    trust_remote_code: bool = False
    use_safetensors: bool = True
    cache: Path = CACHE
    hf: dict[str, Any] = field(default_factory=dict)
    """Handed to ``AutoModelForCausalLM.from_pretrained`` unchanged."""


def load(name: str, options: LoadOptions) -> Loaded:
    """Load what a name means.

    Args:
        name: ``"demo"``, a folder, an adapter folder, a ``.gguf`` file or a hub id.
        options: device, dtype, storage, permissions.

    Raises:
        ModelError: nothing usable is there, or a permission is missing.
        MissingPackageError: 4-bit storage without bitsandbytes.
    """
    source = find(name, options)
    if source.kind == "adapter" or (source.kind == "hub" and _is_hub_adapter(source, options)):
        return _load_adapter(source, options)
    return _load_base(source, options)


def find(name: str, options: LoadOptions) -> Source:
    """What a name means, under these options (see `resolve`)."""
    return resolve(name, allow_pickle=not options.use_safetensors, allow_remote_code=options.trust_remote_code)


def local_folder(source: Source, options: LoadOptions) -> str:
    """Where transformers finds the files: a folder, or the hub id."""
    if source.kind == "demo":
        return str(demo.demo_folder(options.cache / "models"))
    if source.kind == "gguf":
        return str(gguf.model_folder(source.path, options.cache / "models"))
    return source.name


def config_of(name: str, options: LoadOptions) -> Any:
    """The model's configuration alone (of an adapter: its base's), without loading weights."""
    from transformers import AutoConfig

    source = find(name, options)
    if source.kind == "adapter" or (source.kind == "hub" and _is_hub_adapter(source, options)):
        return config_of(_base_name(source, options), options)
    if source.kind == "hub":
        check_remote_code(read_json(_hub_file(source, "config.json", options)), name, allowed=options.trust_remote_code)
    where = local_folder(source, options)
    with_revision = {"revision": options.revision} if options.revision and source.kind == "hub" else {}
    return AutoConfig.from_pretrained(where, trust_remote_code=options.trust_remote_code, **with_revision)


def _load_base(source: Source, options: LoadOptions) -> Loaded:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if source.kind == "hub":
        config = read_json(_hub_file(source, "config.json", options))
        check_remote_code(config, source.name, allowed=options.trust_remote_code)
    where = local_folder(source, options)
    common: dict[str, Any] = {"trust_remote_code": options.trust_remote_code}
    if source.kind == "hub":
        common |= {"revision": options.revision or "main", "token": options.token}
    arguments = {**common, "dtype": getattr(torch, options.dtype), **options.hf}
    if source.kind != "folder" or options.use_safetensors:
        arguments["use_safetensors"] = True
    if options.device != "cpu":
        arguments.setdefault("device_map", {"": options.device})
    if options.load_in_4bit and "quantization_config" not in arguments:
        arguments["quantization_config"] = _nf4(arguments["dtype"])
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, **common)
        model = AutoModelForCausalLM.from_pretrained(where, **arguments)
    except (OSError, ValueError, KeyError) as cause:
        raise ModelError(
            source.name,
            f"it could not be loaded ({_first_line(cause)})",
            "A model needs config.json, a tokenizer and safetensors weights.",
            "Check its files; pickle weights load only with use_safetensors=False.",
        ) from cause
    return Loaded(model, tokenizer, source, source, _give_padding(model, tokenizer))


def _give_padding(model: Any, tokenizer: Any) -> list[str]:
    # Padding is always found by position, never by id, so sharing the end token's id is harmless.
    if tokenizer.pad_token_id is not None:
        return []
    tokenizer.pad_token = tokenizer.eos_token
    return [f"the tokenizer has no padding token: {tokenizer.eos_token!r} pads (by position; it is still learnt)"]


def _nf4(dtype: Any) -> Any:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingPackageError(
            "load_in_4bit",
            "True, but bitsandbytes is not installed",
            "4-bit storage is bitsandbytes' NF4 format.",
            'Run `pip install "hasten[bnb]"`, or pass load_in_4bit=False.',
        )
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def _load_adapter(source: Source, options: LoadOptions) -> Loaded:
    from peft import PeftModel

    base = _load_base_of(source, options)
    where = source.name
    model = PeftModel.from_pretrained(base.model, where, is_trainable=True)
    # A live model names its base by a path that is here: peft looks there, and else on the hub, whenever it saves.
    model.peft_config["default"].base_model_name_or_path = local_folder(base.base, options)
    _require_complete(model, source, options)
    return Loaded(model, base.tokenizer, source, base.base, base.notes)


def _load_base_of(source: Source, options: LoadOptions) -> Loaded:
    name = _base_name(source, options)
    try:
        found = find(name, options)
    except ModelError as cause:
        raise ModelError(
            source.name,
            f"its base model '{name}' is not there ({cause.value})",
            "An adapter is loaded onto the model it was trained on.",
            "Put the base there, or correct base_model_name_or_path in adapter_config.json.",
        ) from cause
    if found.kind == "adapter":
        raise ModelError(
            source.name, f"its base '{name}' is an adapter too", "A base is a whole model.", "Merge that adapter first."
        )
    return _load_base(found, options)


def _base_name(source: Source, options: LoadOptions) -> str:
    file = source.path / _ADAPTER_CONFIG if source.kind == "adapter" else _hub_file(source, _ADAPTER_CONFIG, options)
    name = read_json(file).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ModelError(
            source.name, "adapter_config.json names no base model", "PEFT records it there.", "Add base_model_name_or_path."
        )
    return name


def _require_complete(model: Any, source: Source, options: LoadOptions) -> None:
    """Every tensor of the adapter file is used and every slot is filled; peft alone would go on without."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    name = "adapter_model.safetensors"
    file = source.path / name if source.kind == "adapter" else _hub_file(source, name, options)
    with safe_open(file, "pt") as stored:
        in_file = set(stored.keys())
    with_embedding = any("lora_" not in name for name in in_file)
    in_model = set(get_peft_model_state_dict(model, save_embedding_layers=with_embedding))
    unused, empty = sorted(in_file - in_model), sorted(in_model - in_file)
    if unused or empty:
        found = f"{len(unused)} tensors of the file have no place (first: {unused[0]})" if unused else ""
        missing = f"{len(empty)} places have no tensor (first: {empty[0]})" if empty else ""
        raise ModelError(
            source.name,
            " and ".join(part for part in (found, missing) if part),
            "An adapter is loaded completely or not at all.",
            "It may belong to another base model, or be damaged.",
        )


def _is_hub_adapter(source: Source, options: LoadOptions) -> bool:
    from huggingface_hub.errors import EntryNotFoundError

    try:
        _download(source, "config.json", options)
    except EntryNotFoundError:
        return True
    return False


def _hub_file(source: Source, file: str, options: LoadOptions) -> Path:
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return _download(source, file, options)
    except EntryNotFoundError as cause:
        raise ModelError(
            source.name, f"the repository has no {file}", "hasten loads transformers models and PEFT adapters.", "Name another."
        ) from cause


def _download(source: Source, file: str, options: LoadOptions) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(hf_hub_download(source.name, file, revision=options.revision, token=options.token))
    except GatedRepoError as cause:
        raise ModelError(
            source.name, "the repository is gated", "Its owner must let you in.", "Ask on its page, then pass token=..."
        ) from cause
    except RepositoryNotFoundError as cause:
        rule = "It is no local folder and no repository you can see."
        raise ModelError(source.name, "unknown model", rule, "Check the spelling, or pass token=... if it is private.") from cause
    except LocalEntryNotFoundError as cause:
        raise ModelError(
            source.name,
            "no such local folder, and the hub cannot be reached",
            "A model is 'demo', a folder, a .gguf file or a hub id; this one is not in the hub's cache.",
            "Check the spelling and the connection.",
        ) from cause
    except EntryNotFoundError:
        raise
    except (HfHubHTTPError, OSError) as cause:
        raise ModelError(
            source.name, f"the hub did not answer ({_first_line(cause)})", "It holds this model's files.", "Try again later."
        ) from cause


def _first_line(cause: BaseException) -> str:
    return str(cause).strip().splitlines()[0][:300] if str(cause).strip() else type(cause).__name__
