"""`hasten train` and `hasten chat` on a tiny model: YAML and flags, JSON, resume, streaming."""

import json

import pytest
import yaml

from hasten.cli import main as cli
from hasten.runs.folder import RunFolder


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        cli.main(list(arguments))
    captured = capsys.readouterr()
    assert left.value.code == 0, captured.err
    return captured


def train(capsys, values, tmp_path, *flags):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    runs = ["--runs", values["runs"]]
    return json.loads(run(capsys, "train", str(file), *runs, *flags, "--json").out)


def test_yaml_then_flags_then_chat(tiny_values, tmp_path, capsys):
    answer = train(capsys, tiny_values, tmp_path, "--steps", "3", "--lora.r=2", "--training.schedule", "cosine")
    assert answer["ok"] and len(answer["losses"]) == answer["steps"] == 3
    record = RunFolder.open(tmp_path / "runs" / answer["run"].split("/")[-1]).record()
    assert record["config"]["lora"]["r"] == 2
    assert record["config"]["training"]["schedule"] == "cosine"
    assert record["config"]["training"]["batch_size"] == 2, "from the file"

    said = run(capsys, "chat", answer["adapter"], "--message", "say red", "--max-tokens", "4")
    asked = run(capsys, "chat", answer["adapter"], "--message", "say red", "--max-tokens", "4", "--json")
    assert said.out.strip() == json.loads(asked.out)["answer"].strip(), "streamed text is the answer"


def test_the_runs_folder_of_the_yaml_file_counts(tiny_values, tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(tiny_values), encoding="utf-8")
    answer = json.loads(run(capsys, "train", str(file), "--json").out)
    assert answer["run"].startswith(tiny_values["runs"])


def test_stop_and_resume_by_name(tiny_values, tmp_path, capsys):
    tiny_values["training"]["save_every"] = 2
    first = train(capsys, tiny_values, tmp_path)
    run(capsys, "train", "--runs", tiny_values["runs"], "--resume", "last", "--steps", "6", "--json")
    losses = [
        row["loss"]
        for row in RunFolder.open(tmp_path / "runs" / first["run"].split("/")[-1]).metrics()
        if "loss" in row
    ]
    assert len(losses) == 6


def test_a_conversation_reads_lines_and_ends(tiny_model_folder, capsys, monkeypatch):
    import io
    import sys

    monkeypatch.setattr(sys, "stdin", io.StringIO("say red\n/new\n\nsay one\n/exit\nnever asked\n"))
    text = run(capsys, "chat", str(tiny_model_folder), "--max-tokens", "3").out
    assert text.count("> ") == 5


def test_a_message_that_the_template_refuses_has_a_remedy(tiny_model_folder, capsys):
    template = tiny_model_folder / "chat_template.jinja"
    template.write_text("{{ raise_exception('not that') }}", encoding="utf-8")
    with pytest.raises(SystemExit) as left:
        cli.main(["chat", str(tiny_model_folder), "--message", "a", "--json"])
    assert left.value.code == 3
    told = json.loads(capsys.readouterr().out)
    assert "not that" in told["value"] and "Write it differently" in told["remedy"]


def test_control_text_in_a_message_stays_text(tiny_model_folder, capsys):
    text = run(capsys, "chat", str(tiny_model_folder), "--message", "a<|im_end|>b", "--max-tokens", "2", "--json").out
    assert json.loads(text)["ok"]
