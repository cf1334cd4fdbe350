import json
import os

import pytest

from hasten.errors import RunError
from hasten.runs.folder import RunFolder
from hasten.runs.listing import find_run, list_runs
from hasten.runs.status import StatusWriter


def make(root, name, created, **record):
    folder = RunFolder.create(root, name)
    folder.write_record(record)
    path = folder.path / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "created": created}))
    return folder


def test_runs_come_newest_first_with_what_they_are(tmp_path):
    make(tmp_path, "a", "2026-01-02T00:00:00+00:00", model={"source": "folder/model"})
    folder = make(tmp_path, "b", "2026-01-03T00:00:00+00:00", model="tiny")
    make(tmp_path, "c", "2026-01-01T00:00:00+00:00")
    for step in (1, 2):
        folder.log_metrics({"step": step, "loss": 3.0 - step})
    with StatusWriter(folder.status_file, total_steps=2) as writer:
        writer.set(step=2)
    runs = list_runs(tmp_path)
    assert [run.name for run in runs] == ["b", "a", "c"]
    assert runs[0].as_dict() == {
        "name": "b", "path": str(folder.path), "state": "finished", "step": 2, "total_steps": 2, "first_loss": 2.0,
        "last_loss": 1.0, "created": "2026-01-03T00:00:00+00:00", "model": "tiny", "reason": "",
    }  # fmt: skip
    assert (runs[1].state, runs[1].model) == ("unknown", "folder/model")


def test_damaged_runs_are_listed_with_the_reason(tmp_path):
    make(tmp_path, "good", "2026-01-01T00:00:00+00:00")
    make(tmp_path, "newer", "2026-01-01T00:00:00+00:00").path.joinpath("run.json").write_text('{"schema_version": 7}')
    make(tmp_path, "cut", "2026-01-01T00:00:00+00:00").path.joinpath("run.json").write_text('{"sche')
    make(tmp_path, "status", "2026-01-01T00:00:00+00:00").status_file.write_text("[]")
    make(tmp_path, "folders", "2026-01-01T00:00:00+00:00").path.joinpath("metrics.jsonl").mkdir()
    RunFolder.create(tmp_path, "no-record")
    (tmp_path / "something else").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "file").write_text("")
    runs = {run.name: run for run in list_runs(tmp_path)}
    assert {name: run.state for name, run in runs.items()} == {
        "good": "unknown", "newer": "unreadable", "cut": "unreadable", "status": "unreadable", "folders": "unreadable",
        "no-record": "unreadable",
    }  # fmt: skip
    assert "schema_version 7" in runs["newer"].reason
    assert "run.json" in runs["no-record"].reason
    assert find_run(tmp_path, "last").name == "good"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_may_not_be_read_is_listed(tmp_path):
    folder = make(tmp_path, "closed", "2026-01-01T00:00:00+00:00")
    folder.path.chmod(0)
    try:
        assert [run.state for run in list_runs(tmp_path)] == ["unreadable"]
    finally:
        folder.path.chmod(0o700)


def test_a_root_that_is_missing_or_no_folder(tmp_path):
    assert list_runs(tmp_path / "runs") == []
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="--runs"):
        list_runs(tmp_path / "file")


def test_finding_by_name_by_path_and_the_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "runs"
    make(root, "old", "2026-01-01T00:00:00+00:00")
    new = make(root, "new", "2026-01-02T00:00:00+00:00")
    outside = RunFolder.create_at(tmp_path / "outside")
    outside.write_record({})
    (tmp_path / "old").mkdir()  # no run: must not hide the one below the root
    assert find_run(root, "old").path == root / "old"
    assert find_run(root, "last").path == new.path
    assert find_run(root, "outside").path == outside.path
    assert find_run(root, str(outside.path)).path == outside.path
    assert find_run(root, "runs/new").path == new.path


@pytest.mark.parametrize("text", ["newer", "../new", "", "x\0y", "x" * 5000])
def test_what_is_not_found(tmp_path, text):
    make(tmp_path / "runs", "new", "2026-01-02T00:00:00+00:00")
    with pytest.raises(RunError, match="new"):
        find_run(tmp_path / "runs", text)


def test_no_run_at_all(tmp_path):
    with pytest.raises(RunError, match="holds no run"):
        find_run(tmp_path, "last")
    with pytest.raises(RunError, match="none yet"):
        find_run(tmp_path, "one")


def test_a_run_found_but_too_new_says_so(tmp_path):
    make(tmp_path, "one", "2026-01-02T00:00:00+00:00").path.joinpath("run.json").write_text('{"schema_version": 2}')
    with pytest.raises(RunError, match="upgrade"):
        find_run(tmp_path, "one")
