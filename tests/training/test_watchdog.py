"""A run stops before its machine has no memory left, and goes on from there."""

import json
from pathlib import Path

import pytest

from hasten.errors import TrainingError
from hasten.hardware.memory import GIB, Meminfo, budget
from hasten.hardware.probe import Hardware
from hasten.runs.folder import RunFolder
from hasten.runs.status import effective_state
from hasten.training import job as jobs
from hasten.training import watchdog as module
from hasten.training.checkpoints import last_checkpoint
from hasten.training.config import combine
from hasten.training.job import train
from hasten.training.watchdog import host_budget, runs_out

SPARK = Hardware(device="cuda:0", name="NVIDIA GB10", total_bytes=121 << 30, cores=20, bf16=True, unified_memory=True)


def machine(available):
    """Budgets of a shared-memory machine whose available memory is what is given, one read after the other."""
    reads = iter(available)

    def read(hardware=None):
        now = int(next(reads) * GIB)
        return budget("unified", meminfo=Meminfo(total=121 * GIB, free=now, available=now))

    return read


def test_memory_that_falls_from_40_to_5_gib_stops_the_run_with_a_complete_checkpoint(
    tiny_values, tmp_path, monkeypatch
):
    falling = [40 - number * 35 / 9 for number in range(10)]
    seen = []
    read = machine(falling)

    def recorded(hardware):
        seen.append(read())
        return seen[-1]

    monkeypatch.setattr(jobs, "host_budget", recorded)
    output = tmp_path / "run"
    training = {"steps": 12, "watch_memory": "on", "learning_rate": 1e-3}
    config = combine(tiny_values, {"output": str(output), "training": training})
    with pytest.raises(TrainingError, match="available memory") as caught:
        train(config)
    run = RunFolder.open(output)
    assert len(seen) == 9 and all(one.bytes > 0 for one in seen), "the reserve was not crossed"
    assert falling[9] * GIB < seen[0].reserve, "the next read would have crossed it"
    checkpoint = last_checkpoint(run.checkpoints)
    assert checkpoint is not None and checkpoint.name == "checkpoint-9"
    assert effective_state(run.status()) == "failed"
    message = str(caught.value)
    assert "1.3 GiB above the reserve" in message and "less a reserve of 7.6 GiB" in message
    assert "step 9 with a complete checkpoint" in message and "resume" in caught.value.remedy
    assert caught.value.exit_code == 7
    monkeypatch.setattr(jobs, "host_budget", machine([100] * 15))
    again = train(config, resume=True)
    assert again.steps == 12 and len(again.losses) == 3
    straight = train(combine(tiny_values, {"output": str(tmp_path / "straight"), "training": training}))
    assert again.losses == straight.losses[9:]


def test_what_runs_out():
    assert runs_out([0]) and runs_out([30, 20, 0])
    assert not runs_out([GIB]) and not runs_out([30, 10])
    assert not runs_out([100, 20, 20]), "one fall is a step that takes its memory"
    assert not runs_out([100, 20, 19]) and runs_out([40, 20, 19]) is False
    assert runs_out([30, 20, 10]) and not runs_out([30, 20, 11])
    assert not runs_out([10, 20, 30]) and not runs_out([20, 10, 15])


def test_it_watches_where_a_gpu_shares_memory_and_where_it_is_asked_for(tiny_values, monkeypatch):
    record = RunFolder.open(train(combine(tiny_values)).run).record()
    header = {line["part"]: line["why"] for line in record["header"]}
    assert "stops with a checkpoint" not in header["memory"]
    assert record["memory"]["rule"] == header["memory"] and all(
        amount >= 0 for amount in record["memory"]["figures"].values()
    )
    assert {"mem_available", "cuda_free"} & set(record["memory"]["figures"])
    monkeypatch.setattr(jobs, "host_budget", machine([100] * 4))
    watched = train(combine(tiny_values, {"training": {"watch_memory": "on"}}))
    header = {line["part"]: line["why"] for line in RunFolder.open(watched.run).record()["header"]}
    assert "stops with a checkpoint" in header["memory"]
    assert json.loads((Path(watched.run) / "result.json").read_text())["stopped"] is False


def test_what_torch_holds_is_not_the_machines(monkeypatch):
    monkeypatch.setattr(module, "read_meminfo", lambda: Meminfo(total=121 * GIB, free=1, available=20 * GIB))
    monkeypatch.setattr(module, "read_cgroup", lambda: None)
    found = host_budget(SPARK)
    assert found.bytes == 20 * GIB - found.reserve and "unused_by_torch" not in found.figures
