import json

import pytest
import typer
from typer.testing import CliRunner

from hasten.cli import runs, show, stop
from hasten.errors import ConfigError, RunError
from hasten.runs.control import take
from hasten.runs.folder import RunFolder
from hasten.runs.status import StatusWriter

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
for _module in (runs, show, stop):
    app.command(**_module.OPTIONS)(_module.command)


def call(*arguments: str):
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


@pytest.fixture
def root(tmp_path):
    folder = RunFolder.create(tmp_path / "runs", "one")
    folder.write_record(
        {
            "model": "tiny [model]",
            "header": [{"part": "norm", "choice": "torch", "why": "no [GPU]", "fallback": True}],
        }
    )
    for step in range(1, 21):
        folder.log_metrics({"step": step, "loss": 2.0 / step})
    return tmp_path / "runs"


def test_runs_lists_them_for_people_and_programs(root):
    RunFolder.create(root, "broken")
    text = call("runs", "--runs", str(root)).stdout
    assert "tiny [model]" in text
    assert "2.0000 -> 0.1000" in text
    assert "broken cannot be read" in text
    value = json.loads(call("runs", "--runs", str(root), "--json").stdout)
    assert value["ok"] is True
    assert [(run["name"], run["state"]) for run in value["runs"]] == [("one", "unknown"), ("broken", "unreadable")]


def test_no_runs_yet(tmp_path):
    assert "no runs" in call("runs", "--runs", str(tmp_path)).stdout
    assert json.loads(call("runs", "--runs", str(tmp_path), "--json").stdout)["runs"] == []


def test_show_draws_the_curve_and_writes_the_page(root):
    text = call("show", "one", "--runs", str(root)).stdout
    page = root / "one" / "report.html"
    assert page.exists()
    assert str(page) in text.splitlines()[-1]
    assert "norm: torch (no [GPU])" in text
    assert "training loss" in text
    assert "step 20" in text


def test_show_for_programs_is_one_object(root):
    value = json.loads(call("show", "last", "--runs", str(root), "--json").stdout)
    assert (value["ok"], value["name"], value["first_loss"], value["last_loss"]) == (True, "one", 2.0, 0.1)
    assert value["page"] == str(root / "one" / "report.html")
    assert value["header"][0]["fallback"] is True


def test_show_says_what_a_later_job_fell_back_to(root):
    folder = RunFolder.open(root / "one")
    same = {"part": "norm", "choice": "torch", "why": "no [GPU]", "fallback": True}
    other = {"part": "kernels", "choice": "plain torch", "why": "no compiler", "fallback": True}
    folder.log_resumption({"checkpoint": "checkpoint-4", "header": [same, {**other, "fallback": False}]})
    folder.log_resumption({"checkpoint": None, "header": [other, "damaged"]})
    text = call("show", "one", "--runs", str(root)).stdout
    assert text.count("norm: torch (no [GPU])") == 1 and text.count("kernels: plain torch (no compiler)") == 1
    again = [line for line in text.splitlines() if line.startswith("again")]
    assert [line.rpartition(": ")[2] for line in again] == ["from checkpoint-4", "from the beginning"]
    value = json.loads(call("show", "one", "--runs", str(root), "--json").stdout)
    assert [job["checkpoint"] for job in value["resumed"]] == ["checkpoint-4", None]
    assert value["resumed"][0]["time"] <= value["resumed"][1]["time"]


def test_show_works_on_a_run_with_a_damaged_status(root):
    (root / "one" / "status.json").write_text("{")
    assert "unreadable" in call("show", "one", "--runs", str(root)).stdout
    assert json.loads(call("show", "one", "--runs", str(root), "--json").stdout)["ok"] is True


@pytest.mark.parametrize(("flags", "what"), [([], "stop"), (["--save"], "save"), (["--evaluate"], "evaluate")])
def test_stop_asks_the_job(root, flags, what):
    folder = RunFolder.open(root / "one")
    with StatusWriter(folder.status_file):
        assert "at its next step" in call("stop", "one", *flags, "--runs", str(root)).stdout
        assert take(folder) == {what}
        value = json.loads(call("stop", "one", *flags, "--runs", str(root), "--json").stdout)
        assert value == {"ok": True, "name": "one", "path": str(folder.path), "requested": what}


def test_stop_refuses_what_cannot_be(root):
    with pytest.raises(ConfigError, match="both --save and --evaluate"):
        call("stop", "one", "--save", "--evaluate", "--runs", str(root))
    with pytest.raises(RunError, match="not started"):
        call("stop", "one", "--runs", str(root))
    with pytest.raises(RunError, match="Did you mean 'one'"):
        call("stop", "ome", "--runs", str(root))
