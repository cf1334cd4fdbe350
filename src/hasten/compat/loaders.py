"""`FastLanguageModel` and `FastModel`: from a name to a model and its tokenizer, by the arguments scripts pass.

What comes back is a plain transformers model (a `PeftModel` for an adapter folder) with a few methods bound on it. No
name is ever mapped to another repository. What an argument cannot do here raises; see docs/compat.md.
"""

from __future__ import annotations

from typing import Any

from hasten.compat import modes
from hasten.compat.adapters import any_peft_model, language_peft_model
from hasten.compat.binding import bind
from hasten.compat.dtypes import dtype_name
from hasten.compat.fast import check_checkpointing, make_fast
from hasten.compat.notes import say_once
from hasten.compat.offered import Unoffered, require_defaults
from hasten.compat.origin import Origin, set_origin
from hasten.errors import CapabilityError, ConfigError
from hasten.families.base import family_of
from hasten.hardware.probe import Hardware, probe
from hasten.loading.model import LoadOptions, load
from hasten.plan import choose_dtype, require_fp8, require_fp8_blocks
from hasten.storage import Storage, asked_storage

_WHERE = "from_pretrained"
_VLLM = "Leave it False; generate with model.generate, or serve save_pretrained_merged's folder with vLLM."
_UNOFFERED = {
    "rope_scaling": Unoffered((None,), "Leave it None; set rope parameters in the model's config.json."),
    "resize_model_vocab": Unoffered((None,), "Call model.resize_token_embeddings(n) before get_peft_model."),
    "offload_embedding": Unoffered((False,), "Leave it False; the embedding stays on the device."),
    "float32_mixed_precision": Unoffered((None, False), "Use dtype=torch.float32 and SFTConfig(bf16=True)."),
    "fast_inference": Unoffered((False,), _VLLM),
    "float8_kv_cache": Unoffered((False,), _VLLM),
    "qat_scheme": Unoffered((None,), "Leave it None; train in 16 bit or with load_in_4bit=True."),
    "unsloth_tiled_mlp": Unoffered((False,), "Leave it False; use_gradient_checkpointing=True saves memory."),
    "unsloth_force_compile": Unoffered((False,), "Leave it False, or call torch.compile on the model."),
    "auto_model": Unoffered((None,), "Leave it None; causal language models are loaded."),
    "whisper_language": Unoffered((None,), "Leave it None; speech models are not loaded."),
    "whisper_task": Unoffered((None,), "Leave it None; speech models are not loaded."),
    "target_parameters": Unoffered((None,), "Pass it to get_peft_model."),
    "num_labels": Unoffered((None,), "Leave it out; causal language models are loaded, not classifiers."),
    "id2label": Unoffered((None,), "Leave it out; causal language models are loaded, not classifiers."),
    "label2id": Unoffered((None,), "Leave it out; causal language models are loaded, not classifiers."),
}


class FastLanguageModel:
    """Loads language models and puts adapters on them."""

    get_peft_model = staticmethod(language_peft_model)
    for_inference = staticmethod(modes.for_inference)
    for_training = staticmethod(modes.for_training)

    @staticmethod
    def from_pretrained(
        model_name: str = "unsloth/Llama-3.2-1B-Instruct",
        max_seq_length: int | None = 2048,
        dtype: Any = None,
        load_in_4bit: bool = True,
        load_in_8bit: bool = False,
        load_in_16bit: bool = False,
        full_finetuning: bool = False,
        token: str | None = None,
        device_map: Any = "sequential",
        rope_scaling: Any = None,
        fix_tokenizer: bool = True,
        trust_remote_code: bool = False,
        use_gradient_checkpointing: bool | str = "unsloth",
        resize_model_vocab: int | None = None,
        revision: str | None = None,
        use_exact_model_name: bool = False,
        offload_embedding: bool = False,
        float32_mixed_precision: bool | None = None,
        fast_inference: bool = False,
        gpu_memory_utilization: float = 0.5,
        float8_kv_cache: bool = False,
        random_state: int = 3407,
        max_lora_rank: int = 64,
        disable_log_stats: bool = True,
        qat_scheme: Any = None,
        load_in_fp8: bool = False,
        unsloth_tiled_mlp: bool = False,
        text_only: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Any, Any]:
        """Load a model and its tokenizer.

        Args:
            model_name: ``"demo"``, a folder, an adapter folder, a ``.gguf`` file or a hub id.
            max_seq_length: longest row; remembered as ``model.max_seq_length`` and used by `SFTConfig`.
            dtype: of weights and activations; None is what the device computes best.
            load_in_4bit: keep frozen weights as NF4; needs bitsandbytes.
            load_in_8bit: keep them as whole numbers of 8 bits instead; needs bitsandbytes.
            load_in_16bit: do not quantize, whatever `load_in_4bit` says; 8-bit checkpoints are read into 16 bits.
            full_finetuning: train every weight; not quantized, and `get_peft_model` changes nothing.
            token: for private and gated hub repositories.
            device_map: as in transformers; ``"sequential"`` is this machine's first device.
            rope_scaling: must be None.
            fix_tokenizer: without effect; a tokenizer without a padding token always pads with its end token.
            trust_remote_code: run Python code from the model's own repository.
            use_gradient_checkpointing: for adapter folders and full fine-tuning; otherwise `get_peft_model` decides.
            resize_model_vocab: must be None.
            revision: branch, tag or commit on the hub.
            use_exact_model_name: without effect; names are never mapped.
            offload_embedding: must be False.
            float32_mixed_precision: must be None or False.
            fast_inference: must be False.
            gpu_memory_utilization: without effect without `fast_inference`.
            float8_kv_cache: must be False.
            random_state: without effect: loading draws no random numbers.
            max_lora_rank: without effect without `fast_inference`.
            disable_log_stats: without effect without `fast_inference`.
            qat_scheme: must be None.
            load_in_fp8: keep them as 8-bit floats instead.
            unsloth_tiled_mlp: must be False.
            text_only: without effect: only text models are loaded.
            *args: none are accepted.
            **kwargs: ``torch_dtype``, ``use_safetensors``, hasten's own ``compute="fp8"`` (products in 8-bit floats,
                also of weights that are trained), and whatever ``AutoModelForCausalLM.from_pretrained`` takes
                (``attn_implementation``, ``quantization_config`` ...).

        Returns:
            The model and its tokenizer.

        Raises:
            CapabilityError: an argument that is not offered.
            MissingPackageError: 4-bit storage without bitsandbytes.
            ModelError: nothing usable is there.
        """
        return _load(dict(locals()))


class FastModel:
    """Loads models of any kind that hasten knows (text, today) and puts adapters on them."""

    get_peft_model = staticmethod(any_peft_model)
    for_inference = staticmethod(modes.for_inference)
    for_training = staticmethod(modes.for_training)

    @staticmethod
    def from_pretrained(
        model_name: str = "unsloth/Llama-3.2-11B-Vision-Instruct-bnb-4bit",
        max_seq_length: int | None = 2048,
        dtype: Any = None,
        load_in_4bit: bool = True,
        load_in_8bit: bool = False,
        load_in_16bit: bool = False,
        full_finetuning: bool = False,
        token: str | None = None,
        device_map: Any = "sequential",
        rope_scaling: Any = None,
        fix_tokenizer: bool = True,
        trust_remote_code: bool = False,
        use_gradient_checkpointing: bool | str = "unsloth",
        resize_model_vocab: int | None = None,
        revision: str | None = None,
        use_exact_model_name: bool = False,
        offload_embedding: bool = False,
        float32_mixed_precision: bool | None = None,
        fast_inference: bool = False,
        gpu_memory_utilization: float = 0.5,
        float8_kv_cache: bool = False,
        random_state: int = 3407,
        max_lora_rank: int = 64,
        disable_log_stats: bool = True,
        qat_scheme: Any = None,
        load_in_fp8: bool = False,
        unsloth_tiled_mlp: bool = False,
        text_only: bool = False,
        return_logits: bool = False,
        fullgraph: bool = True,
        auto_model: Any = None,
        whisper_language: str | None = None,
        whisper_task: str | None = None,
        unsloth_force_compile: bool = False,
        target_parameters: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Any, Any]:
        """Load a model and its tokenizer; see `FastLanguageModel.from_pretrained` for the shared arguments.

        Args:
            model_name: as there.
            max_seq_length: as there.
            dtype: as there.
            load_in_4bit: as there.
            load_in_8bit: as there.
            load_in_16bit: as there.
            full_finetuning: as there.
            token: as there.
            device_map: as there.
            rope_scaling: as there.
            fix_tokenizer: as there.
            trust_remote_code: as there.
            use_gradient_checkpointing: as there.
            resize_model_vocab: as there.
            revision: as there.
            use_exact_model_name: as there.
            offload_embedding: as there.
            float32_mixed_precision: as there.
            fast_inference: as there.
            gpu_memory_utilization: as there.
            float8_kv_cache: as there.
            random_state: as there.
            max_lora_rank: as there.
            disable_log_stats: as there.
            qat_scheme: as there.
            load_in_fp8: as there.
            unsloth_tiled_mlp: as there.
            text_only: as there.
            return_logits: without effect: a forward call returns logits.
            fullgraph: without effect: nothing is compiled.
            auto_model: must be None.
            whisper_language: must be None.
            whisper_task: must be None.
            unsloth_force_compile: must be False.
            target_parameters: must be None here; `get_peft_model` takes it.
            *args: none are accepted.
            **kwargs: as there.

        Returns:
            The model and its tokenizer.

        Raises:
            CapabilityError: an argument that is not offered.
            MissingPackageError: 4-bit storage without bitsandbytes.
            ModelError: nothing usable is there.
        """
        return _load(dict(locals()))


FastTextModel = FastModel


def _load(arguments: dict[str, Any]) -> tuple[Any, Any]:
    extra = dict(arguments.pop("kwargs"))
    if arguments.pop("args"):
        raise ConfigError(_WHERE, "more positional arguments than it has", "Others are passed by name.", "Name them.")
    require_defaults(_WHERE, {**arguments, **extra}, _UNOFFERED)
    check_checkpointing(arguments["use_gradient_checkpointing"])
    for name in ("num_labels", "id2label", "label2id"):
        extra.pop(name, None)
    hardware = probe()
    compute = extra.pop("compute", "bf16")
    options = _options(arguments, extra, hardware)
    _require_compute(compute, options, hardware)
    try:
        loaded = load(arguments["model_name"], options)
    except TypeError as cause:  # transformers hands an argument it does not know to the model's own class
        rule = "transformers refuses an argument."
        raise ConfigError(_WHERE, str(cause), rule, "Remove the one it names.") from cause
    for note in loaded.notes:
        say_once(note)
    is_adapter = hasattr(loaded.model, "peft_config")
    if compute == "fp8":
        model_type = loaded.model.config.model_type
        require_fp8_blocks(family_of(model_type), model_type, "compute")
    _require_trainable(arguments, is_adapter)
    set_origin(
        loaded.model,
        Origin(
            name=loaded.source.name,
            base=loaded.base.name,
            tokenizer=loaded.tokenizer,
            full_finetuning=arguments["full_finetuning"],
            compute=compute,
            use_cache=getattr(loaded.model.config, "use_cache", None),
        ),
    )
    loaded.model.max_seq_length = _length(loaded.model, arguments["max_seq_length"])
    if is_adapter or arguments["full_finetuning"]:
        make_fast(loaded.model, arguments["use_gradient_checkpointing"], compute)
    return bind(loaded.model), loaded.tokenizer


def _require_compute(compute: object, options: LoadOptions, hardware: Hardware) -> None:
    if compute not in ("bf16", "fp8"):
        rule = "Products are made in 16 bits ('bf16') or in 8-bit floats ('fp8')."
        raise ConfigError("compute", repr(compute), rule, "Leave it out.")
    if compute == "fp8":
        require_fp8(hardware, options.dtype, "compute")


def _options(arguments: dict[str, Any], extra: dict[str, Any], hardware: Hardware) -> LoadOptions:
    given = dtype_name(extra.pop("torch_dtype", None), "torch_dtype")
    wanted = dtype_name(arguments["dtype"])
    if "auto" not in (given, wanted) and given != wanted:
        raise ConfigError("torch_dtype", given, f"dtype says {wanted}.", "Give one of them.")
    dtype, _ = choose_dtype(hardware, wanted if given == "auto" else given)
    if arguments["load_in_16bit"] and dtype == "float32":
        say_once("load_in_16bit on a CPU: weights stay float32, its fastest dtype; dtype=torch.bfloat16 halves them")
    safe = extra.pop("use_safetensors", None)
    if arguments["device_map"] not in (None, "sequential"):
        extra["device_map"] = arguments["device_map"]
    return LoadOptions(
        device=hardware.device,
        dtype=dtype,
        storage=_storage(arguments),
        revision=arguments["revision"],
        token=arguments["token"],
        trust_remote_code=arguments["trust_remote_code"],
        use_safetensors=safe is not False,
        widen=arguments["load_in_16bit"] or arguments["full_finetuning"],
        hf={name: value for name, value in extra.items() if value is not None},
    )


def _storage(arguments: dict[str, Any]) -> Storage:
    """4 bits are the default, so another storage that is asked for takes their place."""
    eight = {name: bool(arguments[name]) for name in ("load_in_8bit", "load_in_fp8")}
    if arguments["load_in_16bit"] or arguments["full_finetuning"]:
        plain = "load_in_16bit" if arguments["load_in_16bit"] else "full_finetuning"
        if asked := [name for name, given in eight.items() if given]:
            raise ConfigError(asked[0], f"True, as is {plain}", "Weights are kept in one way.", "Set one of them.")
        return "plain"
    return asked_storage(load_in_4bit=arguments["load_in_4bit"] and not any(eight.values()), **eight)


def _require_trainable(arguments: dict[str, Any], is_adapter: bool) -> None:
    if is_adapter and arguments["full_finetuning"]:
        raise CapabilityError(
            "from_pretrained(full_finetuning=True)",
            f"'{arguments['model_name']}' is an adapter",
            "Full fine-tuning trains a whole model.",
            "Merge it first with save_pretrained_merged, or leave full_finetuning False.",
        )


def _length(model: Any, wanted: int | None) -> int:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if wanted is None:
        return positions or 2048
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
        raise ConfigError("max_seq_length", repr(wanted), "It is a positive whole number.", "Use 2048.")
    if positions is not None and wanted > positions:
        say_once(f"max_seq_length {wanted} is more than the {positions} positions of this model; {positions} is used")
        return positions
    return wanted
