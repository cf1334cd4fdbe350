"""The program: exit codes, one JSON object, and a start that loads nothing heavy."""

import json
import subprocess
import sys

import pytest

from hasten.cli import main as cli


def run(*arguments):
    with pytest.raises(SystemExit) as left:
        cli.main(list(arguments))
    return left.value.code


def test_help_loads_nothing_heavy_and_names_every_command():
    code = (
        "import sys\n"
        "from hasten.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as left: assert left.code == 0\n"
        "assert not {'torch', 'transformers', 'triton', 'bitsandbytes'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("demo", "train", "chat", "quantize", "run", "runs", "show", "stop"):
        assert f"\n  {command} " in done.stdout


def test_a_hasten_error_is_one_message_and_its_exit_code(capsys):
    assert run("train", "--data", "nowhere.jsonl") == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1].startswith("error: nowhere.jsonl: no such file.")
    assert "Traceback" not in captured.err


def test_with_json_the_error_is_an_object_too(capsys):
    assert run("train", "--lora.r", "0", "--lora.tragets", "x", "--json") == 2
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is False and answer["error"] == "ConfigErrors"
    assert [problem["subject"] for problem in answer["problems"]] == ["lora.r", "lora.tragets"]
    assert "Did you mean 'targets'?" in answer["problems"][1]["remedy"]


@pytest.mark.parametrize("arguments", [["nonsense"], ["demo", "--stpes", "3"], ["stop"]])
def test_usage_errors_end_with_2(arguments, capsys):
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert "error:" in captured.err and "Traceback" not in captured.err


@pytest.mark.parametrize("model", ["./nowhere", "nowhere.gguf", "a b c"])
def test_unknown_models_end_with_4(model, capsys):
    assert run("chat", model, "--message", "hi", "--json") == 4
    answer = json.loads(capsys.readouterr().out)
    assert answer["subject"] == model and answer["remedy"]


def test_json_needs_a_message_to_answer(capsys):
    assert run("chat", "--json") == 2
    assert "Add --message TEXT" in capsys.readouterr().err


def test_an_interruption_is_said(capsys, monkeypatch):
    def stopped(*given, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", stopped)
    with pytest.raises(SystemExit) as left:
        cli.main(["runs"])
    assert left.value.code == 130 and capsys.readouterr().err == "\ninterrupted; what was finished before stays\n"
