"""`hasten doctor`: what people see, what programs read, its exit code, and files that are no record."""

import dataclasses
import json
from pathlib import Path

import pytest

from hasten.cli import doctor
from hasten.cli import main as cli
from hasten.hardware.evidence import Reading, load_evidence

PROBES = Path(__file__).parents[1] / "hardware" / "probes"


def run(capsys, *arguments, code=0):
    with pytest.raises(SystemExit) as left:
        cli.main(["doctor", *map(str, arguments)])
    captured = capsys.readouterr()
    assert left.value.code == code, captured.err
    return captured


def test_a_healthy_record(capsys):
    out = run(capsys, "--evidence", PROBES / "h100.json").out
    assert out.startswith("No machine of this kind was at hand")
    assert "ok       GPU                NVIDIA H100 80GB HBM3, 79.6 GiB, compute capability 9.0" in out
    assert out.endswith("\nNothing is wrong here.\n")


def test_faults_and_their_commands(capsys):
    out = run(capsys, "--evidence", PROBES / "spark-ptxas-old.json", code=1).out
    assert "fault    Triton's ptxas" in out
    assert "\nfault: Triton's ptxas\n  export TRITON_PTXAS_PATH=/usr/local/cuda/bin/ptxas\n" in out
    assert out.endswith("1 fault; what to do stands below each.\n")


def test_warnings_alone_are_no_fault(capsys):
    run(capsys, "--evidence", PROBES / "h100-hidden.json", code=0)


@pytest.mark.parametrize(("name", "code"), [("spark", 0), ("spark-torch-cpu", 1)])
def test_as_json(name, code, capsys):
    captured = run(capsys, "--evidence", PROBES / f"{name}.json", "--json", code=code)
    told = json.loads(captured.out)
    assert told["ok"] is (code == 0)
    assert told["findings"][0].keys() == {"state", "subject", "found", "remedy"}
    assert told["verdict"] in captured.err


@pytest.mark.parametrize(
    ("content", "says"), [(None, "No such file"), ("{", "no JSON"), ('{"torhc": 1}', "Did you mean 'torch'?")]
)
def test_files_that_are_no_record(content, says, tmp_path, capsys):
    file = tmp_path / "machine.json"
    if content is not None:
        file.write_text(content, "utf-8")
    captured = run(capsys, "--evidence", file, "--json", code=2)
    assert says in captured.err and "hasten doctor --record FILE" in captured.err or says in captured.err
    assert json.loads(captured.out)["error"] == "ConfigError"


def test_a_record_names_nobody(tmp_path, capsys, monkeypatch):
    here = dataclasses.replace(
        load_evidence(PROBES / "cpu.json"),
        source="read on this machine",
        commands={"cc": Reading("/home/alice/bin/gcc", "not found")},
    )
    monkeypatch.setattr(doctor, "_read", lambda hub: here)
    out = run(capsys, "--record", tmp_path / "machine.json").out
    assert f"What was read is in {tmp_path / 'machine.json'}" in out.replace("\n", "")
    written = load_evidence(tmp_path / "machine.json")
    assert written.commands["cc"].text == "~/bin/gcc"
    assert written.source == here.source and "alice" not in (tmp_path / "machine.json").read_text("utf-8")


def test_a_record_that_cannot_be_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "_read", lambda hub: pytest.fail("read before the folder was looked at"))
    (tmp_path / "file").write_text("", "utf-8")
    captured = run(capsys, "--record", tmp_path / "file" / "machine.json", code=6)
    assert "a file is in the way" in captured.err


def test_help_tells_the_exit_codes(capsys):
    out = run(capsys, "--help").out
    assert "Exit code 0 without faults, 1 with" in " ".join(out.split())


@pytest.mark.slow
def test_for_real(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        cli.main(["doctor", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert left.value.code == (0 if told["ok"] else 1)
    assert {finding["subject"] for finding in told["findings"]} >= {"machine", "driver", "torch", "memory", "Python"}
    assert not list(tmp_path.iterdir()), "nothing is written"
