"""Methods that scripts have, mostly under ``if False:``, and hasten does not offer yet: they exist and say so.

Names, order and defaults are the interface that scripts were written for.
"""

from __future__ import annotations

from typing import Any, NoReturn

from hasten.errors import CapabilityError

BUFFERS = "_unsloth_temporary_saved_buffers"
"""Default of `temporary_location`, which has no effect here."""

_GGUF = "Use save_pretrained_gguf(folder, tokenizer, quantization_method=...), then `hf upload REPO folder_gguf`."
_HUB = "Use save_pretrained_merged(folder, tokenizer), then `hf upload REPO folder`."
_VLLM = "Use model.generate, or save_pretrained_merged(folder, tokenizer) and `vllm serve folder`."
_ADAPTER = "Use model.save_pretrained(folder) and from_pretrained(model_name=folder)."


def _refuse(name: str, value: object, remedy: str) -> NoReturn:
    raise CapabilityError(name, f"called with {value!r}", "hasten does not offer this yet.", remedy)


def merge_in_8_bits(name: str, *args: Any, **kwargs: Any) -> NoReturn:
    """peft's merges into weights that are kept in 8-bit floats, where its sums would be lost.

    Raises:
        CapabilityError: always.
    """
    raise CapabilityError(
        name,
        "called on a model in 8-bit floats",
        "peft adds an adapter to the weights themselves, which are codes here.",
        "Use model.save_pretrained_merged(folder, tokenizer).",
    )


def push_to_hub_merged(
    model: Any,
    repo_id: str,
    tokenizer: Any = None,
    save_method: str = "merged_16bit",
    use_temp_dir: bool | None = None,
    commit_message: str | None = "Trained with Unsloth",
    private: bool | None = None,
    token: str | bool | None = None,
    max_shard_size: str | int | None = "5GB",
    create_pr: bool = False,
    safe_serialization: bool = True,
    revision: str | None = None,
    commit_description: str | None = None,
    tags: list[str] | None = None,
    temporary_location: str = BUFFERS,
    maximum_memory_usage: float = 0.75,
    datasets: list[str] | None = None,
    calibration_dataset: Any = None,
    num_calibration_samples: int = 512,
    max_seq_length: int = 2048,
) -> NoReturn:
    """Not offered yet.

    Raises:
        CapabilityError: always.
    """
    _refuse("push_to_hub_merged", repo_id, _HUB)


def push_to_hub_gguf(
    model: Any,
    repo_id: str,
    tokenizer: Any = None,
    quantization_method: str | list[str] = "fast_quantized",
    first_conversion: str | None = None,
    use_temp_dir: bool | None = None,
    commit_message: str | None = "Trained with Unsloth",
    private: bool | None = None,
    token: str | bool | None = None,
    max_shard_size: str | int | None = "5GB",
    create_pr: bool = False,
    safe_serialization: bool = True,
    revision: str | None = None,
    commit_description: str | None = None,
    tags: list[str] | None = None,
    temporary_location: str = BUFFERS,
    maximum_memory_usage: float = 0.85,
    datasets: list[str] | None = None,
    save_method: str | None = None,
    imatrix_file: str | None = None,
    is_main_process: bool = True,
) -> NoReturn:
    """Not offered yet.

    Raises:
        CapabilityError: always.
    """
    _refuse("push_to_hub_gguf", repo_id, _GGUF)


def save_pretrained_torchao(
    model: Any,
    save_directory: str,
    tokenizer: Any = None,
    torchao_config: Any = None,
    push_to_hub: bool = False,
    token: str | bool | None = None,
) -> NoReturn:
    """Not offered yet.

    Raises:
        CapabilityError: always.
    """
    remedy = "Use save_pretrained_merged(folder, tokenizer) and load that folder with transformers' TorchAoConfig."
    _refuse("save_pretrained_torchao", save_directory, remedy)


def save_pretrained_ggml(model: Any, save_directory: str, tokenizer: Any = None, *args: Any, **kwargs: Any) -> NoReturn:
    """Not offered yet.

    Raises:
        CapabilityError: always.
    """
    _refuse("save_pretrained_ggml", save_directory, _GGUF)


def push_to_hub_ggml(model: Any, tokenizer: Any, repo_id: str, *args: Any, **kwargs: Any) -> NoReturn:
    """Not offered yet.

    Raises:
        CapabilityError: always.
    """
    _refuse("push_to_hub_ggml", repo_id, _GGUF)


def fast_generate(
    model: Any, prompts: Any = None, sampling_params: Any = None, lora_request: Any = None, **kwargs: Any
) -> NoReturn:
    """Not offered: it belongs to fast_inference.

    Raises:
        CapabilityError: always.
    """
    _refuse("fast_generate", prompts, _VLLM)


def fast_generate_batches(model: Any, *args: Any, **kwargs: Any) -> NoReturn:
    """Not offered: it belongs to fast_inference.

    Raises:
        CapabilityError: always.
    """
    _refuse("fast_generate_batches", args, _VLLM)


def save_lora(model: Any, path: str, *args: Any, **kwargs: Any) -> NoReturn:
    """Not offered: it belongs to fast_inference.

    Raises:
        CapabilityError: always.
    """
    _refuse("save_lora", path, _ADAPTER)


def load_lora(model: Any, path: str, *args: Any, **kwargs: Any) -> NoReturn:
    """Not offered: it belongs to fast_inference.

    Raises:
        CapabilityError: always.
    """
    _refuse("load_lora", path, _ADAPTER)
