"""Loading a model: any `Source` becomes a plain `PreTrainedModel` (or `PeftModel`) and its tokenizer.

Only transformers, peft and bitsandbytes load weights; this file decides nothing (dtype, device and storage come from
the Plan) and adds what they leave out: errors in one sentence, adapters that are loaded completely or not at all, and
a padding token where the tokenizer has none.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hasten.cache import CACHE
from hasten.errors import HastenError, MissingPackageError, ModelError
from hasten.files import native_path
from hasten.hardware.probe import shares_memory
from hasten.loading import demo, gguf
from hasten.loading.beginning import FILE, fits, keep_beginning, read_beginning
from hasten.loading.four_bit import keep_trainable, require_read_right
from hasten.loading.pages import drop_cached, returning, weight_files
from hasten.loading.plain_adapter import write_plain
from hasten.loading.published import FP8_METHODS, PublishedFp8
from hasten.loading.source import Source, begins_inside, check_remote_code, read_json, resolve
from hasten.storage import Storage

_ADAPTER_CONFIG = "adapter_config.json"

_WITHOUT = (
    "the adapter was trained on 4-bit weights and began as what they lost; for these weights it is taken without that "
    "beginning, as a plain one of twice the rank"
)


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
    """How to load; the Plan decides the first two."""

    device: str = "cpu"
    dtype: str = "float32"
    storage: Storage = "plain"
    revision: str | None = None
    token: str | None = None
    trust_remote_code: bool = False
    use_safetensors: bool = True
    widen: bool = False
    """Read weights that are published in 8 bits into `dtype`, where all of them are to be trained."""
    cache: Path = CACHE
    hf: dict[str, Any] = field(default_factory=dict)
    """Handed to ``AutoModelForCausalLM.from_pretrained`` unchanged."""

    @property
    def hub_cache(self) -> str | Path | None:
        """Where files of the hub lie, as transformers is told; None: in the usual place."""
        return self.hf.get("cache_dir")


def load(name: str, options: LoadOptions) -> Loaded:
    """Load what a name means.

    Args:
        name: ``"demo"``, a folder, an adapter folder, a ``.gguf`` file, ``"ollama:NAME"`` or a hub id.
        options: device, dtype, storage, permissions.

    Raises:
        ModelError: nothing usable is there, or a permission is missing.
        MissingPackageError: storage in 4 bits or in whole numbers without bitsandbytes.
    """
    source = find(name, options)
    if _is_adapter(source, options):
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
    if _is_adapter(source, options):
        source, options = _base_of(source, options)
    where = _proven(source, options)
    with _translated(source):
        return AutoConfig.from_pretrained(where, **_common(source, options))


def load_tokenizer(name: str, options: LoadOptions) -> Any:
    """The tokenizer that `load` would give, without reading weights.

    Raises:
        ModelError: as `load`.
    """
    source = find(name, options)
    return _tokenizer(source, options)[0]


def _tokenizer(source: Source, options: LoadOptions) -> tuple[Any, list[str]]:
    """A tokenizer that can pad, and what was changed for that."""
    from transformers import AutoTokenizer

    if _is_adapter(source, options):
        if not _has_tokenizer(source, options):
            return _tokenizer(*_base_of(source, options))
        where = source.name  # the one it was trained with: its chat template may be another than the base's
    else:
        where = _proven(source, options)
    with _translated(source), _native(where, source) as place:
        tokenizer = AutoTokenizer.from_pretrained(place, **_common(source, options))
    return tokenizer, _give_padding(tokenizer, source)


def _has_tokenizer(source: Source, options: LoadOptions) -> bool:
    try:
        _file_of(source, "tokenizer_config.json", options)
    except ModelError:
        return False
    return True


def _load_base(source: Source, options: LoadOptions) -> Loaded:
    import torch
    from transformers import AutoModelForCausalLM

    where = _proven(source, options)
    common = _common(source, options)
    arguments = {**common, "dtype": getattr(torch, options.dtype), **options.hf}
    if options.use_safetensors:
        arguments["use_safetensors"] = True
    if options.device != "cpu" or options.storage != "plain":  # quantizers would choose a device of their own
        arguments.setdefault("device_map", {"": options.device})
    kept = _published(source, options, where)
    if kept is not None:
        arguments = {name: value for name, value in arguments.items() if name not in kept.in_config}
        arguments |= {**kept.arguments, "output_loading_info": True}
    elif options.storage != "plain" and "quantization_config" not in arguments:
        arguments["quantization_config"] = _stored_as(options.storage, arguments["dtype"])
    quantizing = options.device == "cpu" and "quantization_config" in arguments
    with _translated(source), _native(where, source) as place, returning() if quantizing else nullcontext():
        made: Any = AutoModelForCausalLM.from_pretrained(place, **arguments)
    model, found = made if kept is not None else (made, {})
    if shares_memory(torch.device(options.device)):
        drop_cached(weight_files(where, source.name, options.revision, options.hub_cache))
    model.name_or_path = where
    keep_trainable(model)
    if options.storage == "int8":
        for module in model.modules():
            if type(module).__name__ == "Linear8bitLt":
                module.compute_dtype = arguments["dtype"]  # bitsandbytes keeps no note of it
    require_read_right(model)
    if kept is not None:
        kept.finish(model, found)
    tokenizer, notes = _tokenizer(source, options)
    if source.kind == "gguf":
        notes += gguf.notes(Path(local_folder(source, options)))
    if kept is not None:
        notes.append(kept.note)
    return Loaded(model, tokenizer, source, source, notes)


@contextmanager
def _native(where: str, source: Source) -> Iterator[str]:
    if source.kind == "hub":
        yield where
        return
    with native_path(Path(where)) as place:
        yield str(place)


def _proven(source: Source, options: LoadOptions) -> str:
    """Where transformers finds the files, once it is known that no code of others would run."""
    if source.kind == "hub":
        config = read_json(_hub_file(source, "config.json", options))
        check_remote_code(config, source.name, allowed=options.trust_remote_code)
    return local_folder(source, options)


def _common(source: Source, options: LoadOptions) -> dict[str, Any]:
    """What every loader of transformers is told."""
    common: dict[str, Any] = {"trust_remote_code": options.trust_remote_code}
    if source.kind == "hub":
        common |= {"revision": options.revision or "main", "token": options.token}
        common |= _elsewhere(options)
    return common


def _elsewhere(options: LoadOptions) -> dict[str, Any]:
    return {} if options.hub_cache is None else {"cache_dir": options.hub_cache}


@contextmanager
def _translated(source: Source) -> Iterator[None]:
    """Turn what transformers, peft and safetensors raise inside the block into one sentence about the model."""
    from safetensors import SafetensorError

    try:
        yield
    except HastenError:
        raise
    except (OSError, ValueError, LookupError, RuntimeError, SafetensorError) as cause:
        if type(cause).__name__ == "OutOfMemoryError":  # torch's; its text is better than ours
            raise
        adapter = source.kind == "adapter"
        raise ModelError(
            source.name,
            f"it could not be loaded ({_first_lines(cause)})",
            "An adapter needs adapter_config.json and weights that fit its base model."
            if adapter
            else "A model needs config.json, a tokenizer and safetensors weights, all whole.",
            "Check its files; pickle weights load only with use_safetensors=False.",
        ) from cause


def _give_padding(tokenizer: Any, source: Source) -> list[str]:
    # Padding is always found by position, never by id, so sharing the end token's id is harmless.
    if tokenizer.pad_token_id is not None:
        return []
    if tokenizer.eos_token_id is None:
        raise ModelError(
            source.name,
            "its tokenizer has no end token",
            "A model learns where to stop from its end token.",
            "Set eos_token in tokenizer_config.json.",
        )
    tokenizer.pad_token = tokenizer.eos_token
    return [f"the tokenizer has no padding token: {tokenizer.eos_token!r} pads (by position; it is still learnt)"]


def _published(source: Source, options: LoadOptions, where: str) -> PublishedFp8 | None:
    """How a checkpoint is read whose weights are 8-bit floats already; None: it is none.

    Raises:
        ModelError: its layout is not known, or another storage is asked for.
    """
    from transformers import AutoConfig

    if {"quantization_config", "config"} & set(options.hf) or source.kind == "gguf":
        return None
    with _translated(source), _native(where, source) as place:
        # As transformers does where it reads the configuration itself: keywords that are fields of it go there.
        given = {**_common(source, options), **options.hf}
        config, rest = AutoConfig.from_pretrained(place, **given, return_unused_kwargs=True)
    own = getattr(config, "quantization_config", None)
    if not isinstance(own, dict) or own.get("quant_method") not in FP8_METHODS:
        return None
    if options.storage not in ("plain", "fp8"):
        raise ModelError(
            source.name,
            "its weights are in 8-bit floats already",
            "Rounding twice loses twice: other storages are made from 16-bit weights.",
            "Leave load_in_4bit and load_in_8bit False, or name the original model.",
        )
    in_config = frozenset(options.hf) - set(rest)
    return PublishedFp8.of(source.name, config, options.dtype, widen=options.widen, in_config=in_config)


def _stored_as(storage: Storage, dtype: Any) -> Any:
    if storage == "fp8":
        from hasten.loading.eight_bit import fp8_config

        return fp8_config(str(dtype).removeprefix("torch."))
    if importlib.util.find_spec("bitsandbytes") is None:
        asked = "load_in_4bit" if storage == "nf4" else "load_in_8bit"
        raise MissingPackageError(
            asked,
            "True, but bitsandbytes is not installed",
            f"{'4-bit storage' if storage == 'nf4' else 'Storage in whole numbers of 8 bits'} is bitsandbytes' format.",
            f'Run `pip install "hasten[bnb]"`, or pass {asked}=False.',
        )
    from transformers import BitsAndBytesConfig

    if storage == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def _load_adapter(source: Source, options: LoadOptions) -> Loaded:
    from peft import PeftModel

    init = read_json(_file_of(source, _ADAPTER_CONFIG, options)).get("init_lora_weights")
    if begins_inside(init):
        raise ModelError(
            source.name,
            f"a checkpoint of an adapter that began inside the weights (init_lora_weights '{init}')",
            "It is read on a base that nobody else has; only the run that wrote it goes on from it.",
            "Load what the finished run saved, a plain adapter, or resume that run.",
        )
    weights = _adapter_weights(source, options)
    base_source, base_options = _base_of(source, options)
    base = _load_base(base_source, base_options)
    where: dict[str, Any] = {}
    if source.kind == "hub":
        where = {"revision": options.revision, "token": options.token, **_elsewhere(options)}
    with _translated(source):
        stored = _tensor_names(weights)
        _grow(base.model, weights)
        began = _beginning(source, options, weights)
        if began is None or fits(base.model, began, source.name):
            model = PeftModel.from_pretrained(base.model, source.name, is_trainable=True, **where)
        else:
            model = _without_beginning(base.model, weights.parent, began)
            base.notes.append(_WITHOUT)
            began = None
    # A live model names its base by a path that is here: peft looks there, and else on the hub, whenever it saves.
    model.peft_config["default"].base_model_name_or_path = local_folder(base.base, base_options)
    _require_complete(model, source, stored)
    if began is not None:
        keep_beginning(model, began)
    tokenizer, notes = _tokenizer(source, options)
    return Loaded(model, tokenizer, source, base.base, list(dict.fromkeys((*base.notes, *notes))))


def _grow(model: Any, weights: Path) -> None:
    """Rows for tokens that were added before an adapter was trained; the adapter's file holds them."""
    if weights.suffix != ".safetensors":
        return
    from safetensors import safe_open

    embedding = model.get_input_embeddings()
    own = next(name for name, module in model.named_modules() if module is embedding).rpartition(".")[2]
    rows = len(embedding.weight)
    with safe_open(str(weights), "pt") as file:
        for name in file.keys():  # noqa: SIM118
            if f".{own}." in name and name.endswith((".weight", "lora_embedding_A")):
                shape = file.get_slice(name).get_shape()
                rows = max(rows, shape[0] if name.endswith(f"{own}.weight") else shape[-1] if "lora_" in name else 0)
    if rows > len(embedding.weight):
        model.resize_token_embeddings(rows, mean_resizing=False)


def _beginning(source: Source, options: LoadOptions, weights: Path) -> dict[str, Any] | None:
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    file = source.path / FILE
    if source.kind == "hub":
        try:
            file = _download(source, FILE, options)
        except EntryNotFoundError:
            return None
        except ModelError as error:
            if isinstance(error.__cause__, LocalEntryNotFoundError):  # the adapter is in the cache, and this is not
                return None
            raise
    return read_beginning(file, weights) if file.is_file() else None


def _without_beginning(base: Any, place: Path, began: dict[str, Any]) -> Any:
    from peft import LoraConfig, PeftModel, load_peft_weights

    config = LoraConfig.from_pretrained(str(place))
    state = load_peft_weights(str(place), device="cpu")
    with TemporaryDirectory(prefix="hasten-") as folder:
        write_plain(state, began, config, Path(folder))
        return PeftModel.from_pretrained(base, folder, is_trainable=True)


def _base_of(source: Source, options: LoadOptions) -> tuple[Source, LoadOptions]:
    """The base model of an adapter, and how to load it: a revision that was named is the adapter's."""
    name = _base_name(source, options)
    options = replace(options, revision=None)
    try:
        base = find(name, options)
        nested = _is_adapter(base, options)
    except ModelError as cause:
        raise ModelError(
            source.name,
            f"its base model '{name}' is not there ({cause.value})",
            "An adapter is loaded onto the model it was trained on.",
            "Put the base there, or correct base_model_name_or_path in adapter_config.json.",
        ) from cause
    if nested:
        rule = "A base is a whole model."
        raise ModelError(source.name, f"its base '{name}' is an adapter too", rule, "Merge that adapter first.")
    return base, options


def _base_name(source: Source, options: LoadOptions) -> str:
    name = read_json(_file_of(source, _ADAPTER_CONFIG, options)).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ModelError(
            source.name,
            "adapter_config.json names no base model",
            "PEFT records it there.",
            "Add base_model_name_or_path.",
        )
    beside = Path(source.name) / name  # an exported adapter says where its base is from its own folder
    return str(beside.resolve()) if name.startswith(".") and source.kind == "adapter" and beside.is_dir() else name


def _adapter_weights(source: Source, options: LoadOptions) -> Path:
    """The adapter's weights; a pickle only where it is asked for."""
    try:
        return _file_of(source, "adapter_model.safetensors", options)
    except ModelError:
        if options.use_safetensors:
            raise
    return _file_of(source, "adapter_model.bin", options)


def _tensor_names(file: Path) -> set[str]:
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(file, "pt") as stored:
            return set(stored.keys())
    import torch

    return set(torch.load(file, map_location="meta", weights_only=True))


def _require_complete(model: Any, source: Source, stored: set[str]) -> None:
    """Every tensor of the adapter file is used and every slot is filled; peft alone would go on without."""
    from peft import get_peft_model_state_dict

    slots = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    with_embedding = set(get_peft_model_state_dict(model, save_embedding_layers=True))  # may be in the file or not
    unused, empty = sorted(stored - with_embedding), sorted(slots - stored)
    if unused or empty:
        found = f"{len(unused)} tensors of the file have no place (first: {unused[0]})" if unused else ""
        missing = f"{len(empty)} places have no tensor (first: {empty[0]})" if empty else ""
        raise ModelError(
            source.name,
            " and ".join(part for part in (found, missing) if part),
            "An adapter is loaded completely or not at all.",
            "It may belong to another base model, or be damaged.",
        )


def _is_adapter(source: Source, options: LoadOptions) -> bool:
    if source.kind != "hub":
        return source.kind == "adapter"
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    cached = [
        isinstance(try_to_load_from_cache(source.name, name, revision=options.revision, **_elsewhere(options)), str)
        for name in (_ADAPTER_CONFIG, "config.json")
    ]
    if any(cached):
        return cached[0]
    try:
        _download(source, _ADAPTER_CONFIG, options)
    except EntryNotFoundError:
        return False
    return True


def _file_of(source: Source, name: str, options: LoadOptions) -> Path:
    """A file of a folder or of a repository; `ModelError` where it is missing."""
    if source.kind == "hub":
        return _hub_file(source, name, options)
    if not (source.path / name).is_file():
        raise ModelError(
            source.name, f"no {name}", "hasten loads transformers models and PEFT adapters.", "Name another folder."
        )
    return source.path / name


def _hub_file(source: Source, file: str, options: LoadOptions) -> Path:
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return _download(source, file, options)
    except EntryNotFoundError as cause:
        rule = "hasten loads transformers models and PEFT adapters."
        raise ModelError(source.name, f"the repository has no {file}", rule, "Name another.") from cause


def _download(source: Source, file: str, options: LoadOptions) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        where = _elsewhere(options)
        return Path(hf_hub_download(source.name, file, revision=options.revision, token=options.token, **where))
    except GatedRepoError as cause:
        raise ModelError(
            source.name, "the repository is gated", "Its owner must let you in.", "Ask on its page, then pass token=..."
        ) from cause
    except RepositoryNotFoundError as cause:
        rule = "It is no local folder and no repository you can see."
        raise ModelError(
            source.name, "unknown model", rule, "Check the spelling, or pass token=... if it is private."
        ) from cause
    except RevisionNotFoundError as cause:
        rule = "A revision is a branch, a tag or a commit of the repository."
        raise ModelError(source.name, f"no revision '{options.revision}'", rule, "Check the spelling.") from cause
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
            source.name,
            f"the hub did not answer ({_first_lines(cause)})",
            "It holds this model's files.",
            "Try again later.",
        ) from cause


def _first_lines(cause: BaseException) -> str:
    """The beginning of an error's text: a first line that ends in a colon says nothing without the second."""
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()] or [type(cause).__name__]
    shown = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return shown[:300]
