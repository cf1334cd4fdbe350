"""Names, order and defaults are the interface that scripts were written for."""

import inspect

import pytest
import torch
from peft import TaskType

from hasten.compat import gguf, later, saving
from hasten.compat.chat_templates import (
    get_chat_template,
    standardize_data_formats,
    standardize_sharegpt,
    train_on_responses_only,
)
from hasten.compat.loaders import FastLanguageModel, FastModel, FastTextModel

BUFFERS = "_unsloth_temporary_saved_buffers"
LOADER = {
    "model_name": "unsloth/Llama-3.2-1B-Instruct",
    "max_seq_length": 2048,
    "dtype": None,
    "load_in_4bit": True,
    "load_in_8bit": False,
    "load_in_16bit": False,
    "full_finetuning": False,
    "token": None,
    "device_map": "sequential",
    "rope_scaling": None,
    "fix_tokenizer": True,
    "trust_remote_code": False,
    "use_gradient_checkpointing": "unsloth",
    "resize_model_vocab": None,
    "revision": None,
    "use_exact_model_name": False,
    "offload_embedding": False,
    "float32_mixed_precision": None,
    "fast_inference": False,
    "gpu_memory_utilization": 0.5,
    "float8_kv_cache": False,
    "random_state": 3407,
    "max_lora_rank": 64,
    "disable_log_stats": True,
    "qat_scheme": None,
    "load_in_fp8": False,
    "unsloth_tiled_mlp": False,
    "text_only": False,
}
MORE = {
    "return_logits": False,
    "fullgraph": True,
    "auto_model": None,
    "whisper_language": None,
    "whisper_task": None,
    "unsloth_force_compile": False,
    "target_parameters": None,
}
LANGUAGE_PEFT = {
    "r": 16,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "bias": "none",
    "layers_to_transform": None,
    "layers_pattern": None,
    "finetune_last_n_layers": None,
    "use_gradient_checkpointing": "unsloth",
    "random_state": 3407,
    "max_seq_length": 2048,
    "use_rslora": False,
    "modules_to_save": None,
    "init_lora_weights": True,
    "loftq_config": {},
    "temporary_location": BUFFERS,
    "qat_scheme": None,
    "target_parameters": None,
    "ensure_weight_tying": False,
}
ANY_PEFT = {
    "r": 16,
    "target_modules": None,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "bias": "none",
    "finetune_vision_layers": True,
    "finetune_language_layers": True,
    "finetune_attention_modules": True,
    "finetune_mlp_modules": True,
    "finetune_last_n_layers": None,
    "layers_to_transform": None,
    "layers_pattern": None,
    "use_gradient_checkpointing": "unsloth",
    "random_state": 3407,
    "max_seq_length": 2048,
    "use_rslora": False,
    "modules_to_save": None,
    "init_lora_weights": True,
    "loftq_config": {},
    "task_type": TaskType.CAUSAL_LM,
    "temporary_location": BUFFERS,
    "qat_scheme": None,
    "target_parameters": None,
    "ensure_weight_tying": False,
    "finetune_audio_layers": False,
}
MERGED = {
    "tokenizer": None,
    "save_method": "merged_16bit",
    "push_to_hub": False,
    "token": None,
    "is_main_process": True,
    "state_dict": None,
    "save_function": torch.save,
    "max_shard_size": "5GB",
    "safe_serialization": True,
    "variant": None,
    "save_peft_format": True,
    "tags": None,
    "temporary_location": BUFFERS,
    "maximum_memory_usage": 0.75,
    "datasets": None,
    "calibration_dataset": None,
    "num_calibration_samples": 512,
    "max_seq_length": 2048,
}
CHAT = {
    "chat_template": "chatml",
    "mapping": {"role": "role", "content": "content", "user": "user", "assistant": "assistant"},
    "map_eos_token": True,
    "system_message": None,
    "patch_saving": True,
    "use_zoo_tokenizer_patch": None,
}
RESPONSES = {
    "instruction_part": None,
    "response_part": None,
    "force_match": True,
    "tokenizer": None,
    "return_function": False,
    "num_proc": None,
    "last_response_only": False,
}
STANDARD = {
    "tokenizer": None,
    "aliases_for_system": ["system"],
    "aliases_for_user": ["user", "human", "input"],
    "aliases_for_assistant": ["gpt", "assistant", "output"],
    "batch_size": 1000,
    "num_proc": None,
}


def defaults(function):
    """Name and default of every argument that has one and can be given by position, in order."""
    parameters = inspect.signature(function).parameters.values()
    named = [each for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
    return [(each.name, each.default) for each in named if each.default is not each.empty]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (FastLanguageModel.from_pretrained, LOADER),
        (FastModel.from_pretrained, {**LOADER, "model_name": "unsloth/Llama-3.2-11B-Vision-Instruct-bnb-4bit", **MORE}),
        (FastLanguageModel.get_peft_model, LANGUAGE_PEFT),
        (FastModel.get_peft_model, ANY_PEFT),
        (FastLanguageModel.for_training, {"use_gradient_checkpointing": True}),
        (saving.save_pretrained_merged, MERGED),
        (get_chat_template, CHAT),
        (train_on_responses_only, RESPONSES),
        (standardize_data_formats, STANDARD),
    ],
)
def test_defaults(function, expected):
    assert defaults(function) == list(expected.items())


def test_same_objects():
    assert FastTextModel is FastModel
    assert standardize_sharegpt is standardize_data_formats


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (later.push_to_hub_merged, ["save_method", "use_temp_dir", "private", "create_pr", "commit_description"]),
        (
            gguf.save_pretrained_gguf,
            ["quantization_method", "first_conversion", "imatrix_file", "merge_is_disposable"],
        ),
        (later.push_to_hub_gguf, ["quantization_method", "private", "imatrix_file", "is_main_process"]),
        (later.save_pretrained_torchao, ["torchao_config", "push_to_hub", "token"]),
    ],
)
def test_later_has_the_names(function, names):
    found = [name for name, _ in defaults(function)]
    assert [name for name in found if name in names] == names
