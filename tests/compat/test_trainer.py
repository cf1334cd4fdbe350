import dataclasses
import importlib.metadata
import math
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

trl = pytest.importorskip("trl")

# ruff: noqa: E402
from compat.conftest import moved, trl_that_trains
from hasten.blocks.apply import refused_in_training
from hasten.compat import trainer as module
from hasten.compat.loaders import FastLanguageModel
from hasten.compat.trainer import (
    SFTConfig,
    SFTTrainer,
    UnslothTrainer,
    UnslothTrainingArguments,
    split_embeddings,
    unsloth_train,
)
from hasten.errors import CapabilityError, ConfigError, TrainingError
from hasten.hardware.memory import Budget
from hasten.hardware.probe import Hardware
from support import tiny

pytestmark = trl_that_trains

TEXTS = ["the red dog", "and the green cat, say one two three", "blue", "what does the user say?"]
TURNS = [{"role": "user", "content": "say one"}, {"role": "assistant", "content": "one two"}]


def rows(**column):
    return Dataset.from_dict(column or {"text": TEXTS})


def config(**changes):
    given = {
        "max_steps": 2,
        "warmup_steps": 0,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 2,
        "optim": "adamw_torch",
    }
    return SFTConfig(**{**given, **changes})


def test_the_spark_call(adapted, tmp_path, capsys):
    """NVIDIA's check: obsolete `tokenizer=` and `max_seq_length=`, an 8-bit optimizer, metrics at the end."""
    model, tokenizer = adapted
    trainer = SFTTrainer(
        model=model,
        train_dataset=rows(),
        tokenizer=tokenizer,
        args=SFTConfig(
            max_seq_length=32,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            warmup_steps=1,
            max_steps=3,
            logging_steps=1,
            output_dir=str(tmp_path / "outputs"),
            optim="adamw_8bit",
            seed=3407,
        ),
    )
    assert isinstance(trainer, trl.SFTTrainer)
    assert trainer.args.max_length == 32
    stats = trainer.train()
    assert stats.metrics["train_runtime"] > 0
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3 and all(math.isfinite(loss) for loss in losses)
    assert SFTTrainer.last_metrics == stats.metrics
    said = capsys.readouterr().err
    assert "hasten: 0." in said and "parameters trained" in said and "cpu | float32" in said and "batch 2 x 2" in said


def test_arguments_that_moved(adapted):
    model, tokenizer = adapted
    given = config()
    trainer = SFTTrainer(
        model=model,
        tokenizer=tokenizer,
        train_dataset=rows(story=TEXTS),
        dataset_text_field="story",
        max_seq_length=8,
        dataset_num_proc=1,
        packing=False,
        args=given,
    )
    assert trainer.processing_class is tokenizer
    assert max(len(row["input_ids"]) for row in trainer.train_dataset) == 8
    assert (trainer.args.dataset_text_field, trainer.args.dataset_num_proc) == ("story", 1)
    assert (given.dataset_text_field, given.length_given) == ("text", False)  # the script's own object


def test_unknown_argument(adapted):
    with pytest.raises(ConfigError, match=r"SFTTrainer\(train_datset=...\).*Did you mean 'train_dataset'"):
        SFTTrainer(model=adapted[0], train_datset=rows())


def test_two_tokenizers(adapted):
    model, tokenizer = adapted
    with pytest.raises(ConfigError, match="another object than processing_class.*Give one"):
        SFTTrainer(model=model, train_dataset=rows(), tokenizer=tokenizer, processing_class=tiny.tokenizer())


def test_length_of_the_model(adapted, capsys):
    model, tokenizer = adapted
    assert SFTTrainer(model=model, train_dataset=rows(), tokenizer=tokenizer).args.max_length == 48
    made = SFTTrainer(model=model, train_dataset=rows(), tokenizer=tokenizer, args=config(max_length=1000))
    assert made.args.max_length == 48
    assert "1000" in capsys.readouterr().err
    made = SFTTrainer(model=model, train_dataset=rows(), tokenizer=tokenizer, args=config(max_length=None))
    assert made.args.max_length is None


@pytest.mark.parametrize(("dtype", "bf16"), [("float32", False), ("bfloat16", True)])
def test_precision_of_the_model(tiny_model_folder, dtype, bf16):
    model, tokenizer = FastLanguageModel.from_pretrained(str(tiny_model_folder), load_in_4bit=False, dtype=dtype)
    model = FastLanguageModel.get_peft_model(model, r=4)
    trainer = SFTTrainer(model=model, train_dataset=rows(), tokenizer=tokenizer, args=config())
    assert (trainer.args.bf16, trainer.args.fp16) == (bf16, False)
    assert trainer.accelerator.mixed_precision == ("bf16" if bf16 else "no")
    trainer.train()
    assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float32}


def test_four_bit_adapter_stays_float32(tiny_model_folder):
    pytest.importorskip("bitsandbytes")
    model, tokenizer = FastLanguageModel.from_pretrained(str(tiny_model_folder))
    model = moved(FastLanguageModel.get_peft_model(model, r=4))
    before = [weight.clone() for weight in model.parameters() if weight.requires_grad]
    SFTTrainer(model=model, train_dataset=rows(), tokenizer=tokenizer, args=config()).train()
    after = [weight for weight in model.parameters() if weight.requires_grad]
    assert {weight.dtype for weight in after} == {torch.float32}
    assert all(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize("kind", ["plain", "trl"])
def test_other_configurations(adapted, tmp_path, kind):
    from transformers import TrainingArguments

    model, tokenizer = adapted
    options = {"output_dir": str(tmp_path), "max_steps": 1, "use_cpu": True, "report_to": "none"}
    args = TrainingArguments(**options) if kind == "plain" else trl.SFTConfig(**options, max_length=16, bf16=False)
    trainer = SFTTrainer(model=model, train_dataset=rows(), tokenizer=tokenizer, args=args, max_seq_length=20)
    assert (trainer.args.max_length, trainer.args.max_steps) == (20, 1)
    trainer.train()


def test_evaluation(adapted):
    model, tokenizer = adapted
    trainer = SFTTrainer(
        model=model,
        train_dataset=rows(),
        eval_dataset=rows(),
        tokenizer=tokenizer,
        args=config(gradient_accumulation_steps=3, eval_strategy="steps", eval_steps=1),
    )
    assert (trainer.args.per_device_eval_batch_size, trainer.args.eval_accumulation_steps) == (2, 3)
    trainer.train()
    assert [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert math.isfinite(trainer.evaluate()["eval_loss"])


def test_formatting_func(adapted):
    model, tokenizer = adapted
    trainer = SFTTrainer(
        model=model,
        train_dataset=rows(first=TEXTS, second=TEXTS),
        eval_dataset={"a": rows(first=TEXTS[:1], second=TEXTS[:1])},
        tokenizer=tokenizer,
        formatting_func=lambda row: [f"{row['first']} {row['second']}"],
        args=config(),
    )
    assert tokenizer.decode(trainer.train_dataset[0]["input_ids"]) == "the red dog the red dog<|im_end|>"
    with pytest.raises(ConfigError, match="it returned a str"):
        SFTTrainer(model=model, train_dataset=rows(), tokenizer=tokenizer, formatting_func=str, args=config())


@pytest.mark.parametrize("cls", [SFTTrainer, trl.SFTTrainer])
def test_responses_only(adapted, cls):
    """The labels reach the loss: only the answer and its end of turn, from our trainer and from trl's own."""
    from hasten.compat.chat_templates import train_on_responses_only

    model, tokenizer = adapted
    text = tokenizer.apply_chat_template(TURNS, tokenize=False)
    trainer = cls(model=model, train_dataset=rows(text=[text] * 4), processing_class=tokenizer, args=config())
    train_on_responses_only(trainer)
    batch = next(iter(trainer.get_train_dataloader()))
    learnt = batch["labels"][0][batch["labels"][0] != -100]
    documents = 2 if cls is SFTTrainer else 1  # ours lays a batch end to end in one row
    assert tokenizer.decode(learnt) == "one two<|im_end|>" * documents
    trainer.train()


def test_packed_rows_are_isolated(adapted):
    """packing=True: the loss of a packed batch is the token mean over its documents alone."""
    model, tokenizer = adapted
    model.for_inference()
    trainer = SFTTrainer(
        model=model, train_dataset=rows(), tokenizer=tokenizer, packing=True, args=config(max_length=48)
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"].shape[0] == 1
    found = trainer.compute_loss(model, dict(batch))
    total, count = 0.0, 0
    for text in TEXTS:
        ids = tokenizer(text + tokenizer.eos_token, return_tensors="pt").input_ids
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1]
        total += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        count += ids.shape[1] - 1
    assert found.item() == pytest.approx(total / count, abs=1e-4)


def test_checkpointing_is_the_models_business(loaded):
    model, tokenizer = loaded
    model = FastLanguageModel.get_peft_model(model, r=4, use_gradient_checkpointing=False)
    SFTTrainer(model=model, train_dataset=rows(), tokenizer=tokenizer, args=config()).train()
    assert {layer.hasten_fast.effective for layer in model.get_base_model().model.layers} == {"keep"}
    assert refused_in_training(model) == set()


def test_a_trl_that_cannot_train_here(adapted, monkeypatch):
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.15.0" if name == "trl" else real(name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CapabilityError, match=r"trl 1.15.0 without a GPU.*pip install .trl>=1.16"):
        SFTTrainer(model=adapted[0], train_dataset=rows(), tokenizer=adapted[1], args=config())


def test_every_adapter_moves_with_checkpointing(loaded):
    model = FastLanguageModel.get_peft_model(loaded[0], r=4)
    SFTTrainer(model=model, train_dataset=rows(), tokenizer=loaded[1], args=config()).train()
    assert all(weight.any() for name, weight in model.named_parameters() if "lora_B" in name)
    assert refused_in_training(model) == set()


def test_after_training(adapted, tmp_path):
    """Generation and export need no other call, and the export is the base's but for the weights."""
    from transformers import AutoModelForCausalLM

    model, tokenizer = adapted
    SFTTrainer(model=model, train_dataset=rows(), tokenizer=tokenizer, args=config()).train()
    ids = torch.arange(3, 9)[None]
    answer = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False)
    model.save_pretrained_merged(str(tmp_path / "merged"), tokenizer, dtype="float32")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert again.config.use_cache is True
    assert torch.equal(again.generate(input_ids=ids, max_new_tokens=4, do_sample=False), answer)


def test_trl_makes_the_adapter(loaded):
    """`peft_config=` of the trainer: the new `PeftModel` has the methods, and they are its own."""
    from peft import LoraConfig

    model, tokenizer = loaded
    trainer = SFTTrainer(
        model=model,
        train_dataset=rows(),
        tokenizer=tokenizer,
        args=config(),
        peft_config=LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    )
    assert trainer.model is not model
    assert trainer.model.for_inference() is trainer.model


def test_embedding_learning_rate(tmp_path):
    folder = tiny.save_model(tmp_path / "base", tiny.llama(tied=False))
    model, tokenizer = FastLanguageModel.from_pretrained(str(folder), load_in_4bit=False)
    model = FastLanguageModel.get_peft_model(model, r=4, target_modules=["q_proj", "embed_tokens", "lm_head"])
    before = {name: weight.clone() for name, weight in model.named_parameters() if weight.requires_grad}
    trainer = UnslothTrainer(
        model=model,
        tokenizer=tokenizer,
        train_dataset=rows(),
        args=UnslothTrainingArguments(
            learning_rate=1e-2, embedding_learning_rate=1e-3, max_steps=1, warmup_steps=0, optim="adamw_torch"
        ),
    )
    unsloth_train(trainer)
    assert {group["initial_lr"] for group in trainer.optimizer.param_groups} == {1e-2, 1e-3}
    for name, weight in model.named_parameters():
        if weight.requires_grad and ("embed_tokens" in name or "lm_head" in name):
            # Adam's first step is the learning rate.
            assert (weight - before[name]).abs().max().item() == pytest.approx(1e-3, rel=0.05)


def test_embedding_learning_rate_without_embeddings(adapted, capsys):
    model, _ = adapted
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1.0)
    split_embeddings(optimizer, model, 0.1)
    assert len(optimizer.param_groups) == 1
    assert "has no effect" in capsys.readouterr().err


SPARK = Hardware(device="cuda:0", name="NVIDIA GB10", total_bytes=121 << 30, cores=20, bf16=True, unified_memory=True)


def test_it_stops_before_a_machine_of_one_memory_has_none_left(adapted, tmp_path, monkeypatch):
    model, tokenizer = adapted
    left = [40, 30, 20, 10, 100, 100]
    readings = iter(left)
    monkeypatch.setattr(module, "probe", lambda: SPARK)
    monkeypatch.setattr(
        module, "host_budget", lambda hardware: Budget(bytes=next(readings) << 30, rule="as read", reserve=0)
    )
    trainer = SFTTrainer(
        model=model,
        tokenizer=tokenizer,
        train_dataset=rows(),
        args=config(max_steps=6, save_strategy="no", output_dir=str(tmp_path)),
    )
    with pytest.raises(TrainingError, match=r"20.0 GiB -> 10.0 GiB.*step 4 with a complete checkpoint") as caught:
        trainer.train()
    assert "resume_from_checkpoint=True" in caught.value.remedy and "remove_callback" in caught.value.remedy
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 6 and next(readings, None) is None


@pytest.mark.parametrize(("unified", "processes", "watched"), [(True, 1, True), (True, 2, False), (False, 1, False)])
def test_where_memory_is_watched(monkeypatch, unified, processes, watched):
    monkeypatch.setattr(module, "probe", lambda: dataclasses.replace(SPARK, unified_memory=unified))
    assert (module._watchdog(SimpleNamespace(world_size=processes, output_dir="x")) is not None) == watched
