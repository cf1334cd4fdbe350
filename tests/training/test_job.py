"""The job: from a configuration to an adapter, and what stays when it fails."""

import io
import json
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from hasten.data.prepare import split
from hasten.data.settings import DataSettings
from hasten.errors import (
    ConfigError,
    ConfigErrors,
    DataError,
    MissingPackageError,
    RunError,
    StorageError,
    TrainingError,
)
from hasten.loading.model import LoadOptions, load
from hasten.lora import loftq
from hasten.lora.loftq import leading_part
from hasten.report.console import make_console
from hasten.runs.folder import RunFolder
from hasten.runs.status import effective_state
from hasten.training import job as jobs
from hasten.training.checkpoints import COMPLETE
from hasten.training.config import combine
from hasten.training.job import train
from support.tiny import CHATML


def overlay(values, **sections):
    return combine(values, sections)


def test_a_run_leaves_everything_in_its_folder(reference):
    result, run = reference, RunFolder.open(reference.run)
    assert effective_state(run.status()) == "finished"
    assert [row["step"] for row in run.metrics() if row.get("loss") is not None] == [1, 2, 3, 4]
    assert [row["loss"] for row in run.metrics() if row.get("loss") is not None] == result.losses
    record = run.record()
    assert record["schema_version"] == 1
    assert record["config"]["lora"]["r"] == 4
    assert {"data", "template"} == set(record["hashes"])
    header = {line["part"]: line for line in record["header"]}
    assert header["rows"]["choice"] == "packed"
    assert header["modules"]["choice"] == "LLaMA, fast" and "2 of 2 layers fast" in header["modules"]["why"]
    assert header["kernels"]["choice"] == "plain torch" and not header["kernels"]["fallback"]
    assert header["activations"]["choice"] == "keep"
    assert run.result()["fallbacks"] == []
    assert [sample["when"] for sample in run.samples()] == ["before", "after"]
    stored = run.result()
    assert stored["heldout_loss_after"] == result.heldout_loss_after < result.heldout_loss_before
    assert (run.adapter / "adapter_model.safetensors").is_file()
    assert result.supervised_tokens_per_s > 0 and result.peak_bytes > 0


def test_a_repeated_run_gives_the_same_losses_and_adapter(tiny_values, reference):
    first, second = reference, train(combine(tiny_values))
    assert first.losses == second.losses
    name = "adapter_model.safetensors"
    assert (first.adapter / name).read_bytes() == (second.adapter / name).read_bytes()


# How a step is cut into micro-batches is float32 summation order, nothing else: 1e-5 bounds four steps of it.
@pytest.mark.parametrize("cut", [(1, 4), (4, 1)])
@pytest.mark.parametrize("packing", ["on", "off"])
def test_how_a_step_is_cut_does_not_matter(tiny_values, reference, cut, packing):
    batch_size, accumulation = cut
    training = {"batch_size": batch_size, "accumulation": accumulation, "packing": packing}
    other = train(overlay(tiny_values, training=training))
    assert other.losses == pytest.approx(reference.losses, abs=1e-5)
    assert other.heldout_loss_after == pytest.approx(reference.heldout_loss_after, abs=1e-5)


def test_checkpointing_gives_the_same_run(tiny_values, reference):
    other = train(overlay(tiny_values, training={"checkpointing": "on"}))
    assert other.losses == pytest.approx(reference.losses, abs=1e-6)


@pytest.mark.parametrize("init", ["default", "pissa", "loftq"])
def test_resume_equals_a_straight_run(tiny_values, tmp_path, monkeypatch, init):
    if init == "loftq":
        pytest.importorskip("bitsandbytes", reason="4-bit weights are bitsandbytes'")
        tiny_values["model"]["load_in_4bit"] = True
    lora = {"dropout": 0.1, "init": init}
    straight = train(overlay(tiny_values, training={"steps": 6, "schedule": "cosine"}, lora=lora))
    output = str(tmp_path / "cut")

    config = overlay(
        tiny_values, training={"steps": 6, "schedule": "cosine", "save_every": 3}, lora=lora, output=output
    )
    first = train_until(config, 3)
    assert first.stopped and first.steps == 3
    assert effective_state(RunFolder.open(first.run).status()) == "stopped"
    # A newer checkpoint that was cut off is not taken.
    broken = RunFolder.open(first.run).checkpoints / "checkpoint-5"
    broken.mkdir()
    (broken / "adapter_model.safetensors").write_bytes(b"half")
    # Another machine's vectors may have other signs and roundings: what an adapter began with is the checkpoint's.
    monkeypatch.setattr(
        loftq, "leading_part", lambda *args, **kwargs: [-part for part in leading_part(*args, **kwargs)]
    )
    svd = torch.linalg.svd
    monkeypatch.setattr(
        torch.linalg, "svd", lambda *args, **kwargs: [(1 + 1e-6) * part for part in svd(*args, **kwargs)]
    )
    second = train(config, resume=True)
    assert first.losses + second.losses == straight.losses
    (again,) = RunFolder.open(second.run).resumptions()
    assert again["checkpoint"] == "checkpoint-3" and again["left_out"] == ["checkpoint-5"]
    assert {"device", "modules"} <= {line["part"] for line in again["header"]} and again["hardware"]["cores"] >= 1
    names = ["adapter_model.safetensors", *(["adapter_beginning.safetensors"] if init == "loftq" else [])]
    for name in names:
        assert (second.adapter / name).read_bytes() == (straight.adapter / name).read_bytes()


def test_a_checkpoint_that_does_not_say_what_it_began_with_is_said(tiny_values, tmp_path):
    config = overlay(
        tiny_values, training={"steps": 3, "save_every": 1}, lora={"init": "pissa"}, output=str(tmp_path / "run")
    )
    run = RunFolder.open(train_until(config, 2).run)
    (run.checkpoints / "checkpoint-2" / "adapter_beginning.safetensors").unlink()
    (run.checkpoints / "checkpoint-2" / COMPLETE).write_text("")  # as checkpoints were marked before they had that file
    said = io.StringIO()
    train(config, resume=True, console=Console(file=said, width=200))
    assert "checkpoint-2 does not say what the adapter began with: it is computed again" in said.getvalue()


def train_until(config, step):
    """Train, with the request to stop arriving during the given step."""
    from transformers import TrainerCallback

    class Ask(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == step - 1:
                (Path(config.output) / "control" / "stop").touch()

    original = jobs.make_trainer

    def with_request(job, checkpoints):
        trainer = original(job, checkpoints)
        trainer.add_callback(Ask())
        return trainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "make_trainer", with_request)
        return train(config)


def test_an_adapter_folder_continues_training(tiny_values):
    first = train(combine(tiny_values))
    second = train(overlay(tiny_values, model={"name": str(first.adapter)}))
    assert second.heldout_loss_before == pytest.approx(first.heldout_loss_after, abs=1e-6)
    again = load(str(second.adapter), LoadOptions())
    assert again.base.name == tiny_values["model"]["name"]


@pytest.mark.parametrize(
    ("change", "error", "value", "remedy"),
    [
        ({"lora": {"targets": ["q_proj", "v_prj"]}}, ConfigErrors, "'v_prj'", "'v_proj'"),
        ({"training": {"steps": -1}}, ConfigErrors, "training.steps: -1", "Raise it"),
        ({"training": {"steps": 0, "epochs": 0.0}}, ConfigError, "0, as is training.steps", "Set one of them"),
        ({"data": {"heldout": 12}}, DataError, "12 of 12 rows", "Lower it, say to 1."),
        ({"data": {"max_length": 8}}, DataError, "nothing to learn", "data.max_length ="),
        ({"data": {"source": "nowhere.jsonl"}}, DataError, "no such file", "Check the spelling"),
    ],
)
def test_bad_input_ends_in_one_message_and_leaves_nothing(tiny_values, tmp_path, change, error, value, remedy):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error) as caught:
        train(overlay(tiny_values, **change))
    assert value in str(caught.value) and remedy in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_where_the_runs_folder_should_be(tiny_values, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(StorageError, match="taken' is a file.*another folder"):
        train(overlay(tiny_values, runs=str(tmp_path / "taken" / "runs")))


def test_an_output_folder_with_a_run_is_refused_before_anything_is_loaded(tiny_values, tmp_path, monkeypatch):
    output = str(tmp_path / "mine")
    train(overlay(tiny_values, output=output))
    monkeypatch.setattr(jobs, "prepare_job", lambda *_: pytest.fail("loaded first"))
    with pytest.raises(RunError, match="already holds a run"):
        train(overlay(tiny_values, output=output))


# 19.5 of the pains.
def test_learning_rate_zero_is_no_success(tiny_values, tmp_path):
    output = tmp_path / "zero"
    with pytest.raises(TrainingError, match="Nothing was learnt"):
        train(overlay(tiny_values, training={"learning_rate": 0.0}, output=str(output)))
    run = RunFolder.open(output)
    assert effective_state(run.status()) == "failed"
    assert "Nothing was learnt" in run.status().message
    assert "TrainingError" in run.error()
    assert not run.adapter.exists()


def test_an_8bit_optimizer_without_its_package_is_refused(tiny_values, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingPackageError, match=r"'adamw_8bit'.*pip install .hasten\[bnb\].*or use adamw"):
        train(overlay(tiny_values, training={"optimizer": "adamw_8bit"}))


def test_out_of_device_memory_names_the_remedy(tiny_values, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setattr(jobs.SftTrainer, "training_step", full)
    with pytest.raises(TrainingError, match=r"Tried to allocate 2.00 GiB.*training.batch_size"):
        train(combine(tiny_values))


# bitsandbytes 0.50 repacks 4-bit layers at their first evaluation on some CPUs; the repacked product has no gradient.
def test_evaluating_first_does_not_change_4bit_training(tiny_values):
    pytest.importorskip("bitsandbytes")
    sections = {"model": {"load_in_4bit": True}, "training": {"samples": 0, "steps": 2}}
    looked = train(overlay(tiny_values, **sections))
    heldout = tiny_values["data"]["heldout"]
    job = jobs.prepare_job(overlay(tiny_values, **sections), make_console(io.StringIO()))
    trainer = jobs.make_trainer(job, Path(tiny_values["runs"]))
    assert heldout and not any(getattr(module, "packing_format_for_cpu", False) for module in job.model.modules())
    trainer.train()
    unseen = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert unseen == pytest.approx(looked.losses, abs=1e-6)


@pytest.mark.parametrize(("asked", "choice"), [("load_in_fp8", "fp8"), ("load_in_8bit", "int8")])
def test_weights_in_8_bits_learn_and_the_header_says_so(tiny_values, asked, choice):
    pytest.importorskip("bitsandbytes")
    said = io.StringIO()
    result = train(overlay(tiny_values, model={asked: True}), console=make_console(said))
    assert result.losses[-1] < result.losses[0] and result.heldout_loss_after < result.heldout_loss_before
    assert f"frozen weights: {choice}: 8-bit storage was asked for" in " ".join(said.getvalue().split())
    assert result.fallbacks == []


def test_held_out_rows_that_cannot_be_used(tiny_values, rows_file):
    rows = [json.loads(line) for line in rows_file.read_text(encoding="utf-8").splitlines()]
    held_out = [row["question"] for row in split(rows, DataSettings(heldout=2))[1]]
    faulty = [{**row, "answer": ""} if row["question"] in held_out else row for row in rows]
    with pytest.raises(DataError, match="the 2 held-out rows.*empty 'answer'.*Raise data.heldout"):
        train(combine(tiny_values), rows=faulty)


def numbered(file):
    """The rows of a file, with questions that differ."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [{**row, "question": f"{number} {row['question']}"} for number, row in enumerate(rows)]


def test_held_out_rows_have_the_format_of_all_rows(tiny_values, rows_file):
    rows = numbered(rows_file)
    held_out = [row["question"] for row in split(rows, DataSettings(heldout=2))[1]]
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    strays = [{"messages": turns} if row["question"] == held_out[0] else row for row in rows]
    job = jobs.prepare_job(combine(tiny_values), make_console(io.StringIO()), strays)
    assert job.training.report.format == "question-answer" and job.training.report.kept == 10
    assert len(job.heldout) == 1 and [sample.prompt for sample in job.samples] == [held_out[1]]


def test_rows_that_the_template_refuses_are_no_samples(tiny_values, rows_file, tmp_path):
    rows = numbered(rows_file)
    template = tmp_path / "refuses.jinja"
    template.write_text("{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATML)
    held_out = [row["question"] for row in split(rows, DataSettings(heldout=2))[1]]
    rows = [{**row, "system": "s"} if row["question"] == held_out[0] else row for row in rows]
    tiny_values["data"]["template"] = str(template)
    result = train(overlay(tiny_values, training={"samples": 2}), rows=rows)
    assert [sample.prompt for sample in result.samples] == [held_out[1]]


def test_rows_of_a_program(tiny_values, rows_file, capsys):
    from datasets import Dataset

    tiny_values["data"]["source"] = "no such file"
    result = train(combine(tiny_values), rows=Dataset.from_json(str(rows_file), keep_in_memory=True))
    run = RunFolder.open(result.run)
    assert run.record()["data"]["kept"] == 10 and run.record()["data"]["format"] == "question-answer"
    assert "held out: 2 documents of 2 rows" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="data.limit"):
        train(combine(tiny_values), rows=({"text": "a"} for _ in range(8)))


def test_the_template_that_was_trained_with_goes_with_the_adapter(tiny_values):
    from hasten.data.named_templates import resolve_template
    from hasten.loading.model import LoadOptions, load_tokenizer

    tiny_values["data"]["template"] = "zephyr"
    result = train(combine(tiny_values))
    saved = load_tokenizer(str(result.adapter), LoadOptions())
    assert "generation %" not in saved.chat_template
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    named = saved.apply_chat_template(talk, tokenize=False, chat_template=resolve_template("zephyr", saved))
    assert saved.apply_chat_template(talk, tokenize=False) == named


def test_a_run_is_not_continued_on_other_rows(tiny_values, rows_file):
    tiny_values["training"]["save_every"] = 2
    run = train(combine(tiny_values)).run
    again = combine(tiny_values, {"output": str(run), "training": {"steps": 6}})
    with rows_file.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"question": "new", "answer": "row"}) + "\n")
    with pytest.raises(DataError, match="not those that the run began with.*Put the old rows back"):
        train(again, resume=True)


@pytest.mark.parametrize("change", [{"heldout": 3}, {"limit": 9}, {"loss_on": "all"}])
def test_a_run_is_not_continued_on_other_documents(tiny_values, change):
    run = train(combine(tiny_values)).run
    with pytest.raises(DataError, match="when the run began: 10 documents.*Take back"):
        train(overlay(tiny_values, output=str(run), data=change), resume=True)


@pytest.mark.parametrize(
    ("every", "said"), [(2, "continued from checkpoint-4"), (0, "no complete checkpoint: it begins")]
)
def test_where_a_run_continues_is_said(tiny_values, every, said, capsys):
    tiny_values["training"]["save_every"] = every
    run = train(combine(tiny_values)).run
    capsys.readouterr()
    result = train(overlay(tiny_values, output=str(run), training={"steps": 5}), resume=True)
    assert said in capsys.readouterr().out and len(result.losses) == (1 if every else 5)
