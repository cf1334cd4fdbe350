"""`hasten export`: what people see, what programs read, and how it refuses."""

import json

import pytest

from hasten.cli import main as cli


def run(capsys, *arguments, code=0):
    with pytest.raises(SystemExit) as left:
        cli.main(["export", *map(str, arguments)])
    captured = capsys.readouterr()
    assert left.value.code == code, captured.err
    return captured


def test_files_and_a_table(tiny_model_folder, tmp_path, capsys):
    output = tmp_path / "out"
    text = run(capsys, tiny_model_folder, "--to", "gguf:f16", "--to", "ollama", "--output", output).out
    assert "gguf f16  weights             equal" in text and "template equal on " in text
    assert f"gguf: {output / 'gguf'} (" in text and f"ollama create model -f {output / 'gguf' / 'Modelfile'}" in text


def test_json(tiny_model_folder, tmp_path, capsys):
    arguments = ["--to", "hf", "--output", tmp_path / "out", "--no-verify", "--json"]
    found = json.loads(run(capsys, tiny_model_folder, *arguments).out)
    assert found["ok"] and not found["verified"] and found["checks"] == []
    assert found["targets"]["hf"]["path"] == str(tmp_path / "out" / "hf")


def test_a_run_by_its_name(tiny_values, tmp_path, capsys, monkeypatch):
    from hasten.training.config import combine
    from hasten.training.job import train

    monkeypatch.chdir(tmp_path)
    from rich.console import Console

    train(combine({}, {**tiny_values, "output": str(tmp_path / "runs" / "first")}), console=Console(quiet=True))
    text = run(capsys, "last", "--to", "hf").out
    assert f"hf: {tmp_path / 'runs' / 'first' / 'export' / 'hf'}" in text and "merge" in text
    assert run(capsys, "first", "--to", "lora").out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "ggfu"], "Did you mean 'gguf'"),
        (["--to", "lora"], "'lora' of a whole model"),
        (["--to", "gguf:dynamic", "--size", "q9"], "q9"),
        (["--to", "gguf:dynamic", "--size", "nan"], "1 to 16 bits"),
        (["--to", "gguf", "--importance", "--tokens", "-5"], "--tokens: -5"),
    ],
)
def test_mistakes(tiny_model_folder, tmp_path, capsys, arguments, said):
    error = run(capsys, tiny_model_folder, *arguments, "--output", tmp_path / "out", code=2).err
    assert error.startswith("error: ") and said in error and not (tmp_path / "out").exists()


def test_no_such_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "error: " in run(capsys, "last", "--to", "hf", code=8).err
