"""A complete model folder written from a live model: merged, 16 bit, loadable by plain transformers.

The live model is only read. A twin without weights (on torch's `meta` device) carries the configuration, so that
transformers itself writes the files: tied weights, shards and the names a checkpoint has on disk are its business.
"""

from __future__ import annotations

import copy
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from hasten import files
from hasten.compat.notes import say, say_once
from hasten.compat.origin import Origin
from hasten.data.formats import RowProblem
from hasten.data.generation_tag import without_markers
from hasten.data.templates import ChatEncoder
from hasten.errors import ConfigError, did_you_mean
from hasten.lora.attach import value_count
from hasten.lora.merge import merged_state_dict, quantized_weights, weights_in_4_bits
from hasten.lora.originals import Originals

_WRAPPED = re.compile(r"\.(base_layer|original_module|modules_to_save\.[^.]+)$")
"""What PEFT adds to the name of a layer that it wraps."""
BASE_WEIGHTS = ("auto", "original", "quantized")


def half_dtype(model: Any) -> torch.dtype:
    """What "16 bit" means for a model: its own dtype if that has 16 bits, otherwise bfloat16."""
    return model.dtype if model.dtype in (torch.float16, torch.bfloat16) else torch.bfloat16


def write_merged(
    model: Any,
    folder: Path,
    tokenizer: Any,
    *,
    dtype: torch.dtype,
    max_shard_size: str | int,
    origin: Origin | None,
    originals: Originals | None = None,
) -> None:
    """Fill an existing empty folder with weights, configuration and tokenizer.

    Args:
        model: a `PeftModel` with one LoRA adapter, or a plain transformers model.
        folder: where to.
        tokenizer: saved beside the weights; None saves none.
        dtype: of all floating weights.
        max_shard_size: as in transformers.
        origin: what the loader remembered.
        originals: what takes the place of 4-bit weights; None: their own values.

    Raises:
        CapabilityError: the adapter is of a kind whose merge is not W + scale * B A.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    state = merged_state_dict(model, dtype, originals)
    twin = _twin(base, _plain_config(base, origin), dtype)
    if _ends_differ(twin, state):
        config = twin.config
        config.get_text_config().tie_word_embeddings = config.tie_word_embeddings = False
        twin = _twin(base, config, dtype)
        say_once("embedding and head were trained apart: the merged model keeps both (tie_word_embeddings=False)")
    twin.generation_config = generation_config(base, tokenizer)
    twin.save_pretrained(str(folder), state_dict=state, max_shard_size=max_shard_size)
    if tokenizer is not None:
        clean_tokenizer(tokenizer).save_pretrained(str(folder))


def require_space(model: Any, folder: Path, dtype: torch.dtype, copies: float = 1.0) -> None:
    """Refuse before anything is written when the disk cannot hold the result.

    Raises:
        StorageError: with both numbers.
    """
    need = copies * sum(value_count(parameter) for parameter in model.parameters()) * dtype.itemsize
    files.require_space(folder, int(need), "The merged model takes about")


def generation_config(base: Any, tokenizer: Any) -> Any:
    """A valid copy of a model's generation settings that knows every token that ends an answer.

    Sampling values without sampling (a common fault of published models) make transformers refuse to save; in the
    copy sampling is switched on, because whoever wrote a temperature wanted it used.
    """
    made = copy.deepcopy(base.generation_config)
    if tokenizer is not None:
        made.eos_token_id = _end_ids(tokenizer, made)
    try:
        made.validate(strict=True)
    except ValueError:
        made.do_sample = True
        say_once("generation_config had sampling values without do_sample; the saved copy has do_sample=True")
    return made


def clean_tokenizer(tokenizer: Any) -> Any:
    """A copy as it is saved: without the truncation and padding that a call leaves on it, and without the markers in
    its chat template that programs which serve models do not know."""
    made = copy.deepcopy(tokenizer)
    if isinstance(made.chat_template, str):
        made.chat_template = without_markers(made.chat_template)
    backend = getattr(made, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
    return made


def _end_ids(tokenizer: Any, config: Any) -> Any:
    before = config.eos_token_id
    known = before if isinstance(before, list) else [before] if before is not None else []
    try:
        found = ChatEncoder(tokenizer).end_ids(config)
    except RowProblem:  # a template with demands of its own; the tokenizer's end is certain
        found = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    ids = list(dict.fromkeys([*known, *found]))
    return before if not ids else ids[0] if len(ids) == 1 else ids


def _plain_config(base: Any, origin: Origin | None) -> Any:
    config = copy.deepcopy(base.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    if origin is not None and origin.use_cache is not None:
        config.use_cache = origin.use_cache  # a trainer switches it off on the live model
    return config


def _twin(base: Any, config: Any, dtype: torch.dtype) -> Any:
    with torch.device("meta"):
        twin = type(base)(config)
    twin.to(dtype)
    conversions = getattr(base, "_weight_conversions", None)
    if conversions is not None and not getattr(base, "is_quantized", False):
        twin._weight_conversions = conversions  # how transformers turns runtime names back into those on disk
    return twin


def _ends_differ(twin: Any, state: dict[str, Any]) -> bool:
    """Whether embedding and head are said to be tied, but hold different values."""
    if not getattr(twin.config.get_text_config(), "tie_word_embeddings", False):
        return False
    ends = {id(twin.get_input_embeddings()), id(twin.get_output_embeddings())}
    found = [state.get(f"{name}.weight") for name, module in twin.named_modules() if id(module) in ends]
    present = [weight for weight in found if weight is not None]
    return len(present) == 2 and not torch.equal(present[0], present[1])


def require_adapter(model: Any, method: str = "lora") -> None:
    """Refuse what needs an adapter for a model that has none.

    Raises:
        ConfigError: naming the method that fits.
    """
    if not hasattr(model, "peft_config"):
        raise ConfigError(
            "save_method",
            f"'{method}' for a model without an adapter",
            "An adapter comes from get_peft_model.",
            "Use save_method='merged_16bit'.",
        )


def require_known(wanted: str) -> None:
    """Refuse an unknown word for `base_weights`.

    Raises:
        ConfigError: with the nearest one.
    """
    if wanted not in BASE_WEIGHTS:
        remedy = did_you_mean(wanted, BASE_WEIGHTS, "Use 'auto'.")
        raise ConfigError("base_weights", repr(wanted), f"Allowed: {', '.join(BASE_WEIGHTS)}.", remedy)


def choose_originals(model: Any, wanted: str) -> Originals | None:
    """What a model in 4 or 8 bits is merged into.

    Args:
        model: a `PeftModel` or a plain model.
        wanted: ``"auto"`` (the 16-bit weights it was made from, where they are found), ``"original"`` or
            ``"quantized"``.

    Raises:
        ConfigError: an unknown word, or originals that are not there.
    """
    require_known(wanted)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    quantized = quantized_weights(model)
    if wanted == "quantized" or not quantized:
        return None
    found = Originals.of(base, quantized)
    if found is None and wanted == "original":
        raise ConfigError(
            "base_weights",
            f"'original', but '{base.name_or_path}' holds no 16-bit weights of this model",
            "Originals are the files that a model was quantized from when it was loaded.",
            "Use 'quantized', or load the 16-bit model with load_in_4bit=True.",
        )
    return found


def say_base(model: Any, originals: Originals | None) -> None:
    """What a model in 4 or 8 bits was merged into, and how far that is from what its adapter was trained on."""
    if not quantized_weights(model):
        return
    bits = 4 if weights_in_4_bits(model) else 8
    if originals is None:
        say(f"merged into the {bits}-bit weights' own values: what the adapter was trained on")
        return
    say(
        f"merged into the 16-bit weights of {originals.folder}, another base than the adapter was trained on: its "
        f"{bits}-bit weights are {originals.difference:.1%} away from them (base_weights='quantized' merges into those)"
    )
    if originals.missing:
        say(f"{len(originals.missing)} weights have no original of their name and shape ('{originals.missing[0]}')")


def write_in_4_bits(model: Any, merged: Path, folder: Path, max_shard_size: str | int) -> None:
    """A merged folder once more, with the layers in NF4 that the live model has in 4 bits.

    Args:
        model: the live model.
        merged: from `write_merged`.
        folder: an empty folder.
        max_shard_size: as in transformers.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    linear = {_WRAPPED.sub("", name) for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)}
    in_four = {name.removesuffix(".weight") for name in weights_in_4_bits(model)}
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=half_dtype(model),
        llm_int8_skip_modules=sorted(name for name in linear - in_four if ".lora_" not in name),
    )
    again = AutoModelForCausalLM.from_pretrained(
        merged, quantization_config=settings, dtype=half_dtype(model), device_map={"": base.device}
    )
    again.save_pretrained(str(folder), max_shard_size=max_shard_size)
    for file in merged.iterdir():
        if (
            file.suffix != ".safetensors"
            and not file.name.endswith(".index.json")
            and not (folder / file.name).exists()
        ):
            shutil.copyfile(file, folder / file.name)
