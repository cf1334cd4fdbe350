"""`save_pretrained_merged`: the result as a model folder of 16 or 4 bit weights, or as an adapter.

All are written to a temporary folder and renamed, so a crash or a full disk leaves nothing half-written, and a
folder never holds an adapter beside merged weights: whatever reads it would not know which to load.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from hasten.compat.later import BUFFERS
from hasten.compat.merged import (
    choose_originals,
    clean_tokenizer,
    half_dtype,
    require_adapter,
    require_known,
    require_space,
    say_base,
    write_in_4_bits,
    write_merged,
)
from hasten.compat.notes import say, say_once
from hasten.compat.offered import Unoffered, require_defaults
from hasten.compat.origin import origin_of
from hasten.errors import CapabilityError, ConfigError, StorageError, did_you_mean
from hasten.export.hf.base import open_model
from hasten.export.hf.fp8 import write_fp8
from hasten.files import new_folder, require_writable
from hasten.loading.beginning import FILE, beginning_of, save_with_beginning
from hasten.lora.initial import INITIAL, initial_of, save_plain
from hasten.lora.merge import weights_in_4_bits
from hasten.lora.save import refuse_nonfinite, save_adapter
from hasten.quant.surviving import surviving_share

MERGED, LORA = "merged_16bit", "lora"
IN_4_BITS, FORCED = "merged_4bit", "merged_4bit_forced"
ENOUGH = 0.9
"""Share of an update that is to survive a merge into 4 bits that is not forced."""
IN_8_BITS = "fp8"
_METHODS = (MERGED, LORA, IN_4_BITS, FORCED, IN_8_BITS)
_LATER = ("mxfp4", "torchao")
_HUB = "Save into a folder, then run `hf upload REPO FOLDER`."
_UNOFFERED = {
    "push_to_hub": Unoffered((False,), _HUB),
    "state_dict": Unoffered((None,), "Leave it out: the live model's own weights are saved."),
    "save_function": Unoffered((None,), "Leave it out: weights are written as safetensors."),
    "safe_serialization": Unoffered((True, None), "Leave it out: weights are written as safetensors."),
    "variant": Unoffered((None,), "Leave it out and name the folder accordingly."),
    "calibration_dataset": Unoffered((None,), "Leave it out: 16 bit weights need no calibration."),
}
_MERGED_FILES = (".safetensors", ".safetensors.index.json", "generation_config.json")
_COMMON_FILES = ("config.json", ".jinja", ".model", "tokenizer.json", "tokenizer_config.json", "README.md")
_COMMON_FILES += ("special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt")


def save_learnt(
    model: Any,
    save_directory: Any,
    *args: Any,
    is_main_process: bool = True,
    save_embedding_layers: bool | str = "auto",
    **kwargs: Any,
) -> None:
    """`save_pretrained` of a model whose adapter began inside the weights: what it learnt, as a plain adapter.

    Args:
        model: a `PeftModel`.
        save_directory: where to.
        *args: as in peft.
        is_main_process: whether this process writes.
        save_embedding_layers: as in peft.
        **kwargs: as in peft; with a `state_dict`, as trainers pass it for their checkpoints, all of it is peft's.

    Raises:
        ConfigError: an argument of peft's that a plain adapter is not written with.
        TrainingError: the adapter holds NaN or infinity.
    """
    if "state_dict" in kwargs:
        say_once("checkpoints keep the adapter as it is trained; model.save_pretrained saves it as a plain one")
        given = {"is_main_process": is_main_process, "save_embedding_layers": save_embedding_layers, **kwargs}
        save_with_beginning(model, save_directory, *args, beginning=INITIAL, **given)
        return
    if unknown := [
        name for name, value in kwargs.items() if name != "safe_serialization" and value not in (None, True)
    ]:
        rule = "What an adapter that began inside the weights has learnt is written as one plain adapter."
        raise ConfigError(f"save_pretrained({unknown[0]}=...)", repr(kwargs[unknown[0]]), rule, "Leave it out.")
    if not is_main_process:
        return
    refuse_nonfinite(model)
    folder = Path(save_directory).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    began = initial_of(model)
    assert began is not None, "bound where there is one"
    save_plain(model, began, folder, embedding=save_embedding_layers)


def save_pretrained_merged(
    model: Any,
    save_directory: str | Path,
    tokenizer: Any = None,
    save_method: str = MERGED,
    push_to_hub: bool = False,
    token: str | bool | None = None,
    is_main_process: bool = True,
    state_dict: dict[str, Any] | None = None,
    save_function: Any = torch.save,
    max_shard_size: str | int = "5GB",
    safe_serialization: bool = True,
    variant: str | None = None,
    save_peft_format: bool = True,
    tags: list[str] | None = None,
    temporary_location: str = BUFFERS,
    maximum_memory_usage: float = 0.75,
    datasets: list[str] | None = None,
    calibration_dataset: Any = None,
    num_calibration_samples: int = 512,
    max_seq_length: int = 2048,
    *,
    dtype: str | torch.dtype | None = None,
    base_weights: str = "auto",
) -> None:
    """Save a model for others to load.

    Args:
        model: a `PeftModel` or a plain transformers model.
        save_directory: the folder; one that holds an older result of the same kind is replaced.
        tokenizer: saved beside the weights; None is the one that was loaded with the model.
        save_method: ``"merged_16bit"`` (adapter merged, bfloat16 unless the model is float16), ``"lora"``, or
            ``"merged_4bit"`` (merged and rounded to NF4; how much of what was learnt survives is said, and where it
            is less than nine tenths only ``"merged_4bit_forced"`` writes it), or ``"fp8"`` (merged, linear weights in
            8-bit floats with one scale per output: compressed-tensors' layout, as vLLM reads it).
        push_to_hub: must be False.
        token: for the hub; without effect.
        is_main_process: False writes nothing.
        state_dict: must be None.
        save_function: must be `torch.save`.
        max_shard_size: largest file of weights, as in transformers.
        safe_serialization: must be True.
        variant: must be None.
        save_peft_format: without effect: adapters have PEFT's format.
        tags: for a model card on the hub; without effect.
        temporary_location: without effect.
        maximum_memory_usage: without effect.
        datasets: for a model card on the hub; without effect.
        calibration_dataset: must be None.
        num_calibration_samples: without effect.
        max_seq_length: without effect.
        dtype: hasten's own: another dtype for the merged weights, e.g. ``"float32"`` to keep them exact.
        base_weights: hasten's own, for models in 4 bits: merge into the 16-bit weights that they were made from
            (``"original"``), into the 4-bit weights' values (``"quantized"``), or into the former where they are found
            (``"auto"``). With ``"lora"``, of an adapter that began as what 4 bits lost: ``"original"`` writes a plain
            one of twice the rank that fits the 16-bit weights, the others write it as it was trained.

    Raises:
        CapabilityError: a method or an argument that is not offered.
        ConfigError: an unknown method, or a folder that holds something else.
        StorageError: the disk is full or not writable.
        TrainingError: the adapter holds NaN or infinity.
    """
    method = _method(save_method)
    given = {name: value for name, value in locals().items() if name in _UNOFFERED and value is not torch.save}
    require_defaults("save_pretrained_merged", given, _UNOFFERED)
    if tags or datasets:
        say_once("tags and datasets belong to a model card on the hub; no card is written")
    if not is_main_process:
        return
    folder = Path(save_directory).expanduser()
    require_writable(folder)
    _require_replaceable(folder, method)
    _require_other_than_base(model, folder)
    origin = origin_of(model)
    if tokenizer is None and origin is not None:
        tokenizer = origin.tokenizer
    if method == LORA:
        require_adapter(model)
        require_known(base_weights)
        plain = base_weights == "original"
        save_adapter(model, clean_tokenizer(_required(tokenizer)), folder, _base_name(model), plain=plain)
        fitting = f" for the {'16' if plain else '4'}-bit weights" if beginning_of(model) is not None else ""
        say(f"adapter{fitting} saved in {folder}")
        return
    kept = half_dtype(model) if dtype is None else getattr(torch, str(dtype).removeprefix("torch."))
    refuse_nonfinite(model)
    require_space(model, folder, kept, copies=1.0 if method == MERGED else 1.6)  # few bits lie beside 16
    originals = choose_originals(model, base_weights)
    written: dict[str, Any] = {
        "dtype": kept,
        "max_shard_size": max_shard_size,
        "origin": origin,
        "originals": originals,
    }
    if method == MERGED:
        with new_folder(folder) as temporary:
            write_merged(model, temporary, tokenizer, **written)
        say_base(model, originals)
        say(f"merged model saved in {folder} ({str(kept).removeprefix('torch.')})")
        return
    if method == IN_8_BITS:
        with TemporaryDirectory(dir=folder.parent) as merged:
            write_merged(model, Path(merged), tokenizer, **written)
            write_fp8(open_model(merged), folder, max_shard_size=max_shard_size)
        say_base(model, originals)
        say(f"merged model saved in {folder} (8-bit floats)")
        return
    share = _share(model, originals, method, kept)
    with new_folder(folder) as temporary, TemporaryDirectory(dir=folder.parent) as merged:
        write_merged(model, Path(merged), tokenizer, **written)
        write_in_4_bits(model, Path(merged), temporary, max_shard_size)
    say_base(model, originals)
    say(f"merged model saved in {folder} (NF4): {share:.0%} of what the adapter learnt is left")


def _share(model: Any, originals: Any, method: str, dtype: torch.dtype) -> float:
    """What survives of the adapter in 4 bits.

    Raises:
        ConfigError: the model is not in 4 bits, or has no adapter.
        CapabilityError: it was not forced.
    """
    require_adapter(model, method)
    if not weights_in_4_bits(model):
        rule = "Only a model that was loaded in 4 bits is merged into 4 bits."
        raise ConfigError("save_method", repr(method), rule, f"Use '{MERGED}', then `hasten quantize` on that folder.")
    share = surviving_share(model, originals, dtype)
    if method == IN_4_BITS and share < ENOUGH:
        raise CapabilityError(
            "save_method",
            f"'{method}': {share:.0%} of what the adapter learnt would be left",
            "An update that is small beside the steps of 4 bits rounds back to where a 4-bit weight was.",
            f"Use '{MERGED}' or '{LORA}', or keep its 16-bit files at hand; '{FORCED}' writes it all the same.",
        )
    return share


def _method(name: str) -> str:
    method = str(name).strip().lower().replace(" ", "_").replace("-", "_")
    if method in _METHODS:
        return method
    if method in _LATER:
        raise CapabilityError(
            "save_method",
            repr(name),
            "hasten writes 16 bit, 8-bit floats, NF4 and adapters.",
            f"Use '{MERGED}' or '{LORA}'.",
        )
    remedy = did_you_mean(method, (*_METHODS, *_LATER), f"Use '{MERGED}'.")
    raise ConfigError("save_method", repr(name), f"It is one of {', '.join(_METHODS)}.", remedy)


def _require_replaceable(folder: Path, method: str) -> None:
    """An existing folder is replaced as a whole, so it may hold only an older result of the same kind."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise StorageError(str(folder), "a file", "A model is saved as a folder.", "Choose another name.")
    own = ("adapter_model.safetensors", "adapter_config.json", FILE) if method == LORA else _MERGED_FILES
    names = sorted(entry.name for entry in folder.iterdir())
    foreign = [name for name in names if not name.endswith((*own, *_COMMON_FILES))]
    if method != LORA:
        foreign = [name for name in names if name.startswith("adapter_")] or foreign
    elif "config.json" in names:
        foreign = ["config.json"]
    if foreign:
        raise ConfigError(
            f"save_directory '{folder}'",
            f"it holds '{foreign[0]}'",
            "Saving replaces the folder as a whole, and an adapter and a merged model never share one.",
            "Choose another folder.",
        )


def _require_other_than_base(model: Any, folder: Path) -> None:
    """The folder of the base model stays: it is what adapters are loaded on and merged into."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    place = Path(str(base.name_or_path))
    if hasattr(model, "peft_config") and place.is_dir() and folder.exists() and folder.samefile(place):
        raise ConfigError(
            f"save_directory '{folder}'",
            "it holds the base model",
            "Adapters are loaded on it and merged into it.",
            "Choose another folder.",
        )


def _required(tokenizer: Any) -> Any:
    if tokenizer is None:
        raise ConfigError(
            "tokenizer",
            "None",
            "An adapter is saved with its tokenizer, so that its chat template travels along.",
            "Pass tokenizer=.",
        )
    return tokenizer


def _base_name(model: Any) -> str:
    origin = origin_of(model)
    return origin.base if origin else model.peft_config[model.active_adapter].base_model_name_or_path
