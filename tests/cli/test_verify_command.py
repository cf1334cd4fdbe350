"""`hasten verify`: passes a model that learns, fails one that cannot, and says why."""

import json
import subprocess
import sys

import pytest
import torch

from hasten.cli import main as cli
from support import tiny


def verify(folder, *arguments):
    command = [sys.executable, "-m", "hasten", "verify", "--json", "--output", "run", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900, check=False)
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    return done.returncode, json.loads(done.stdout), done.stderr


def verify_here(folder, capsys, *arguments):
    """The same without a process of its own: Python need not start and import everything again."""
    with pytest.raises(SystemExit) as left:
        cli.main(["verify", "--json", "--output", str(folder / "run"), *map(str, arguments)])
    said = capsys.readouterr()
    return left.value.code, json.loads(said.out), said.err


@pytest.fixture
def expressive(tmp_path):
    """`TL` with embeddings, and so a head, large enough that frozen ones can say every token surely."""
    model = tiny.llama(max_position_embeddings=512)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(10)
    return tiny.save_model(tmp_path / "model", model)


@pytest.mark.slow
def test_a_model_that_learns_passes(expressive, tmp_path, capsys):
    code, told, said = verify_here(tmp_path, capsys, expressive)
    assert code == 0 and told["ok"] is True and told["verdict"] == "passed", told["checks"]
    assert [check["name"] for check in told["checks"]] == ["learning", "adapter", "reload", "fallbacks"]
    assert told["losses"][-1] <= 0.5 * told["losses"][0] and len(told["losses"]) == 60
    assert 0 < told["first_step_s"] < told["total_s"]
    for text in ("torch ", "Triton ", "rows: packed", "held-out loss before", "4 training rows", "verdict: passed"):
        assert text in said


@pytest.mark.slow
def test_a_model_that_cannot_learn_fails_with_the_reason(tmp_path, capsys):
    """A frozen random head of small values cannot say any token surely, whatever the adapter does."""
    model = tiny.save_model(tmp_path / "model", tiny.llama(max_position_embeddings=512))
    code, told, said = verify_here(tmp_path, capsys, "--model", model, "--steps", "5")
    assert code == 1 and told["ok"] is False and told["verdict"] == "failed"
    assert [check["name"] for check in told["checks"] if not check["passed"]] == ["learning"]
    assert "FAILED  learning: loss 4.8" in said and "verdict: failed" in said


@pytest.mark.slow
def test_the_embedded_model_passes(demo_model_folder, tmp_path):
    code, told, _ = verify(tmp_path, "--steps", "12")
    assert code == 0, told["checks"]
    assert told["losses"][-1] < 0.5 * told["losses"][0]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["./nowhere"], 4), (["demo", "--model", "demo"], 2), (["--steps", "1"], 2), (["--stpes", "3"], 2)],
)
def test_bad_input_is_one_error(arguments, code, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        cli.main(["verify", *arguments])
    said = capsys.readouterr()
    assert left.value.code == code and said.err.count("error:") == 1 and "Traceback" not in said.err
    assert list(tmp_path.iterdir()) == []
