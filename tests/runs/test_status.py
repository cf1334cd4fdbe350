import dataclasses
import errno
import json
import os
import platform
import subprocess
import sys
import threading
import time

import psutil
import pytest

from hasten.errors import RunError, StorageError
from hasten.runs import status as status_module
from hasten.runs.status import Status, StatusWriter, effective_state, read_status

JOB = """
import sys, time
from pathlib import Path
from hasten.runs.status import StatusWriter
writer = StatusWriter(Path(sys.argv[1]), total_steps=9)
writer.set(state="running", step=3)
print("ready", flush=True)
time.sleep(60)
"""


def living(**changes: object) -> Status:
    started = psutil.Process().create_time()
    return dataclasses.replace(Status("running", os.getpid(), started, platform.node(), time.time()), **changes)


def test_a_killed_job_is_dead_even_before_its_parent_looks(tmp_path):
    path = tmp_path / "status.json"
    job = subprocess.Popen([sys.executable, "-c", JOB, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert job.stdout is not None
        assert job.stdout.readline() == "ready\n"
        status = read_status(path)
        assert (status.state, status.step, status.total_steps, status.pid) == ("running", 3, 9, job.pid)
        assert effective_state(status) == "running"
        job.kill()
        deadline = time.time() + 10
        while psutil.Process(job.pid).status() != psutil.STATUS_ZOMBIE and time.time() < deadline:
            time.sleep(0.01)
        assert effective_state(read_status(path)) == "dead"  # a zombie: nobody has waited for it yet
    finally:
        job.kill()
        job.wait()
        assert job.stdout is not None
        job.stdout.close()
    assert effective_state(read_status(path)) == "dead"
    assert read_status(path).state == "running"


def test_a_reused_process_number_is_dead():
    assert effective_state(living()) == "running"
    assert effective_state(living(pid_started=psutil.Process().create_time() - 1.5)) == "running"
    assert effective_state(living(pid_started=psutil.Process().create_time() - 2.5)) == "dead"


def test_another_host_is_judged_by_its_heartbeat():
    elsewhere = living(host="elsewhere", pid=999_999_999, pid_started=0.0)
    assert effective_state(elsewhere) == "running"
    assert effective_state(dataclasses.replace(elsewhere, heartbeat=time.time() - 110)) == "running"
    assert effective_state(dataclasses.replace(elsewhere, heartbeat=time.time() - 130)) == "dead"


@pytest.mark.parametrize("state", ["finished", "stopped", "failed"])
def test_a_run_that_ended_is_not_dead(state):
    assert effective_state(living(state=state, pid=999_999_999)) == state


def test_another_users_process_counts_as_alive(monkeypatch):
    def refuse(pid):
        raise psutil.AccessDenied(pid)

    monkeypatch.setattr(psutil, "Process", refuse)
    assert effective_state(Status("running", 1, 0.0, platform.node(), time.time())) == "running"


def test_readers_see_whole_files_during_replacements(tmp_path):
    path = tmp_path / "status.json"
    seen: list[int] = []
    bad: list[Exception] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                seen.append(json.loads(path.read_text())["step"])
            except (OSError, ValueError, KeyError) as error:
                bad.append(error)

    with StatusWriter(path) as writer:
        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        for step in range(1, 201):
            writer.set(step=step)
        done.set()
        for reader in readers:
            reader.join()
    assert not bad
    assert len(set(seen)) > 1
    assert read_status(path).step == 200
    assert [item.name for item in tmp_path.iterdir()] == ["status.json"]


def test_several_threads_may_write(tmp_path):
    path = tmp_path / "status.json"
    with StatusWriter(path) as writer:
        threads = [
            threading.Thread(target=lambda: [writer.set(message="x" * 100) for _ in range(30)]) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert writer.last_error is None
    assert read_status(path).state == "finished"


def test_the_heartbeat_goes_on_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(status_module, "_HEARTBEAT_S", 0.05)
    path = tmp_path / "status.json"
    with StatusWriter(path):
        before = read_status(path).heartbeat
        deadline = time.time() + 5
        while read_status(path).heartbeat == before and time.time() < deadline:
            time.sleep(0.02)
        assert read_status(path).heartbeat > before
    after = read_status(path).heartbeat
    time.sleep(0.2)
    assert read_status(path).heartbeat == after


def test_a_full_disk_does_not_end_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(status_module, "_HEARTBEAT_S", 0.05)
    path = tmp_path / "status.json"
    full = True

    def replace(source, target, _real=os.replace, **more):
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return _real(source, target, **more)

    with StatusWriter(path) as writer:
        monkeypatch.setattr(os, "replace", replace)
        deadline = time.time() + 5
        while writer.last_error is None and time.time() < deadline:
            time.sleep(0.02)
        assert isinstance(writer.last_error, StorageError)
        writer.set(step=7)
        assert read_status(path).step == 0
        full = False
        while read_status(path).step == 0 and time.time() < deadline:
            time.sleep(0.02)
        assert read_status(path).step == 7  # the heartbeat made up for it
    assert read_status(path).state == "finished"


def test_a_folder_that_goes_away_does_not_end_the_training(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with StatusWriter(folder / "status.json") as writer:
        (folder / "status.json").unlink()
        folder.rmdir()
        writer.set(step=1)
        assert isinstance(writer.last_error, OSError)


def test_the_first_write_must_succeed(tmp_path):
    with pytest.raises(StorageError):
        StatusWriter(tmp_path / "missing" / "status.json")


def test_how_a_block_ends(tmp_path):
    path = tmp_path / "status.json"
    with pytest.raises(ValueError, match="broken"), StatusWriter(path):
        raise ValueError("broken")
    assert (read_status(path).state, read_status(path).message) == ("failed", "ValueError: broken")
    with pytest.raises(KeyboardInterrupt), StatusWriter(path):
        raise KeyboardInterrupt
    assert read_status(path).state == "stopped"
    with StatusWriter(path) as writer:
        writer.close("stopped", "on request")
        writer.set(state="running", step=5)
        writer.close("failed")
    assert (read_status(path).state, read_status(path).message, read_status(path).step) == ("stopped", "on request", 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 2}, "pip install --upgrade hasten"),
        ({"state": "sleeping"}, "unknown state 'sleeping'"),
        ({"pid": "12"}, "pid is '12'"),
        ({"step": True}, "step is True"),
        ({"heartbeat": None}, "heartbeat is None"),
    ],
)
def test_damaged_files_are_named(tmp_path, changes, message):
    path = tmp_path / "status.json"
    path.write_text(json.dumps({**dataclasses.asdict(living()), "of_the_future": 1}))
    assert read_status(path).state == "running"
    path.write_text(json.dumps({**dataclasses.asdict(living()), **changes}))
    with pytest.raises(RunError, match=message):
        read_status(path)
    path.unlink()
    with pytest.raises(RunError, match="missing"):
        read_status(path)
