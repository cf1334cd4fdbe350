import json

import pytest

from hasten.cli.main import main


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(["run", *map(str, arguments)])
    return end.value.code, capsys.readouterr()


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(
        "import sys\nfrom unsloth import FastModel\nprint('hello', sys.argv[1:])\n"
        "sys.exit(int(sys.argv[sys.argv.index('--code') + 1]) if '--code' in sys.argv else 0)\n"
    )
    return path


def test_runs(script, capsys):
    code, said = run(capsys, script)
    assert (code, said.out) == (0, "hello []\n")


def test_arguments_are_the_scripts(script, capsys):
    code, said = run(capsys, script, "--steps", "3", "-x", "--help", "rows.jsonl")
    assert (code, said.out) == (0, "hello ['--steps', '3', '-x', '--help', 'rows.jsonl']\n")


def test_exit_code_is_the_scripts(script, capsys):
    assert run(capsys, script, "--code", "7")[0] == 7


def test_json(script, capsys):
    code, said = run(capsys, "--json", script, "--steps", "3")
    assert code == 0
    assert "hello ['--steps', '3']" in said.err
    result = json.loads(said.out)
    assert (result["ok"], result["script"], result["exit_code"], result["metrics"]) == (True, str(script), 0, None)
    assert result["seconds"] >= 0


def test_json_of_a_failed_script(script, capsys):
    code, said = run(capsys, "--json", script, "--code", "4")
    assert code == 4
    assert json.loads(said.out)["ok"] is False


def test_missing_script(tmp_path, capsys):
    code, said = run(capsys, "--json", tmp_path / "nowhere.py")
    assert code == 2
    assert "nowhere.py: no such file" in said.err
    assert json.loads(said.out)["error"] == "ConfigError"


def test_an_error_of_ours_keeps_its_code(tmp_path, capsys):
    path = tmp_path / "vision.py"
    path.write_text("from unsloth import FastVisionModel\nFastVisionModel.from_pretrained('x')\n")
    code, said = run(capsys, path)
    assert code == 5
    assert "vision.py, line 2" in said.err and "Only text models" in said.err


def test_its_own_help(capsys):
    code, said = run(capsys, "--help")
    assert code == 0
    assert "SCRIPT" in said.out and "unsloth" in said.out
