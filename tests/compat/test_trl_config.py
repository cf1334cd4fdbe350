import dataclasses
import sys

import pytest

pytest.importorskip("trl")

# ruff: noqa: E402
from hasten.compat.trainer import SFTConfig, UnslothTrainingArguments
from hasten.compat.trl_config import UNNAMED_OUTPUT
from hasten.errors import CapabilityError, ConfigError


def test_defaults():
    made = SFTConfig()
    expected = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "per_device_eval_batch_size": 4,
        "weight_decay": 0.001,
        "learning_rate": 5e-5,
        "warmup_steps": 0.1,
        "seed": 3407,
        "logging_steps": 1,
        "torch_empty_cache_steps": 250,
        "report_to": [],
        "padding_free": False,
        "output_dir": UNNAMED_OUTPUT,
        "save_strategy": "no",
        "bf16": False,
        "fp16": False,
        "use_cpu": True,  # no GPU is needed, nor asked for
    }
    assert {name: getattr(made, name) for name in expected} == expected
    assert made.optim == "adamw_8bit"
    assert not made.length_given


def test_a_named_folder_is_saved_to(tmp_path):
    assert SFTConfig(output_dir=str(tmp_path)).save_strategy == "steps"


def test_older_names():
    made = SFTConfig(
        max_seq_length=77,
        evaluation_strategy="steps",
        eval_steps=3,
        warmup_ratio=0.03,
        no_cuda=True,
        group_by_length=True,
        bf16=True,
    )
    assert (made.max_length, made.max_seq_length, made.length_given) == (77, 77, True)
    assert (made.eval_strategy, made.warmup_steps, made.use_cpu, made.bf16) == ("steps", 0.03, True, True)
    assert made.train_sampling_strategy == "group_by_length"


def test_warmup():
    assert SFTConfig(warmup_steps=5, warmup_ratio=0.1).warmup_steps == 5
    assert SFTConfig(warmup_ratio=0.1, warmup_steps=0).warmup_steps == 0.1
    assert SFTConfig(warmup_steps=0).warmup_steps == 0
    assert SFTConfig(group_by_length=False).train_sampling_strategy == SFTConfig().train_sampling_strategy


def test_names_without_effect(capsys):
    SFTConfig(overwrite_output_dir=True, save_safetensors=True)
    said = capsys.readouterr().err
    assert "overwrite_output_dir" in said and "save_safetensors" in said


def test_unknown_name():
    with pytest.raises(ConfigError, match=r"SFTConfig\(learning_rat=...\).*Did you mean 'learning_rate'"):
        SFTConfig(learning_rat=1)


def test_said_twice():
    with pytest.raises(ConfigError, match="1024, but it was also given as 77.*Give max_length alone"):
        SFTConfig(max_length=77, max_seq_length=1024)
    assert SFTConfig(max_length=77, max_seq_length=77).max_length == 77


def test_copies_keep_everything():
    made = SFTConfig(max_seq_length=77, output_dir="x", learning_rate=1e-3)
    again = dataclasses.replace(made, bf16=True)
    assert isinstance(again, SFTConfig)
    assert (again.max_length, again.learning_rate, again.bf16, again.mixed_precision) == (77, 1e-3, True, "bf16")


def test_optimizer_without_bitsandbytes(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert SFTConfig().optim == "adamw_torch"
    assert SFTConfig(optim="paged_adamw_8bit").optim == "adamw_torch"
    said = capsys.readouterr().err
    assert said.count("optim adamw_8bit: bitsandbytes is not installed, adamw_torch is used") == 1


def test_unsloth_arguments():
    made = UnslothTrainingArguments(embedding_learning_rate=1e-5, max_seq_length=64, learning_rate=1e-4)
    assert (made.embedding_learning_rate, made.max_length, made.learning_rate, made.seed) == (1e-5, 64, 1e-4, 3407)
    assert isinstance(made, SFTConfig)
    with pytest.raises(CapabilityError, match="q_galore_config.*galore_adamw"):
        UnslothTrainingArguments(q_galore_config={"a": 1})
