"""What killed exports leave is removed by the next, and nothing else is."""

import itertools
import json
import os
import platform
import signal
import subprocess
import sys
import time

import pytest

from hasten.export import leftovers
from hasten.export.hf.base import open_model
from hasten.export.job import RECORD, Request, export
from hasten.export.leftovers import owned, remove_left
from hasten.export.targets import parse

TOKEN = "0123abcd"
KILLED = """
import os, sys, time
from pathlib import Path
from hasten.export import prove
from hasten.export.hf.base import open_model
from hasten.export.job import Request, export
from hasten.export.targets import parse

def hang(*given, **named):
    print("now", flush=True)
    time.sleep(120)

prove.compare_weights = hang
export(open_model(sys.argv[1]), Request(wanted=parse(["hf"]), output=Path(sys.argv[2])))
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def left(tmp_path):
    """A job's folders as it leaves them when it is killed."""

    def make(token=TOKEN, **changes):
        with owned(tmp_path, token) as scratch:
            (scratch / "x.bin").write_bytes(bytes(3 << 20))
            files = {path.name: path.read_bytes() for path in scratch.parent.iterdir() if path.is_file()}
        for name in (
            f".unverified-job-{token}",
            f".unverified-gguf-lora-{token}",
            f"..unverified-hf-{token}.{'a' * 12}.tmp",
        ):
            (tmp_path / name).mkdir()
        job = tmp_path / f".unverified-job-{token}"
        for name, content in files.items():
            (job / name).write_bytes(content)
        status = json.loads(files["status.json"])
        (job / "status.json").write_text(json.dumps({**status, "state": "starting", **changes}))
        return job

    return make


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_killed_export_leaves_nothing_for_long(tiny_model_folder, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(tiny_model_folder), str(out)]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert job.stdout is not None and job.stdout.readline() == "now\n"
    before = names(out)
    assert len(before) == 2 and all(name.startswith(".unverified-") for name in before)
    asked = Request(wanted=parse(["gguf:f32"]), output=out, verify=False, name="x")
    done = export(open_model(str(tiny_model_folder)), asked)
    assert not any("killed" in note for note in done.notes)
    assert set(before) <= set(names(out)), "the other one lives"
    job.send_signal(signal.SIGKILL)
    job.wait()
    job.stdout.close()
    done = export(open_model(str(tiny_model_folder)), asked)
    assert any(note.startswith("an export that was killed had left 2 folders (") for note in done.notes)
    assert names(out) == [RECORD, "gguf"]


def test_while_it_lasts(tmp_path):
    with owned(tmp_path, TOKEN) as scratch:
        assert scratch.is_dir() and not any(scratch.iterdir())
        assert remove_left(tmp_path) == [] and scratch.is_dir()
    assert names(tmp_path) == []


def test_a_number_that_another_process_has_now(left, tmp_path):
    left(pid=os.getpid(), pid_started=time.time() - 1e6)
    assert "had left 3 folders" in remove_left(tmp_path)[0] and names(tmp_path) == []


def test_only_what_belongs_to_it(left, tmp_path):
    left(pid_started=0.0)
    others = [".unverified-hf-99999999", ".unverified-mine", f"hf-{TOKEN}", f".unverified-hf-{TOKEN}.old", "refused-hf"]
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / f".unverified-notes-{TOKEN}").write_text("a file")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept.txt").write_text("mine")
    (tmp_path / f".unverified-link-{TOKEN}").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / ".unverified-job-11111111").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert len(remove_left(tmp_path)) == 1
    kept = [*others, f".unverified-notes-{TOKEN}", f".unverified-link-{TOKEN}", ".unverified-job-11111111", "elsewhere"]
    assert names(tmp_path) == sorted(kept) and (tmp_path / "elsewhere" / "kept.txt").is_file()


def test_another_machine_s_is_asked_for_its_heartbeat(left, tmp_path):
    job = left(host="far", pid_started=0.0)
    (job / "machine").write_text("far 1 2")
    assert remove_left(tmp_path) == [f"'{job.name}' stays: an export on 'far' may be writing it"]
    assert len(names(tmp_path)) == 3
    job = left("feed0123", host="far", heartbeat=time.time() - 4000)
    (job / "machine").write_text("far 1 2")
    assert len(remove_left(tmp_path)) == 2 and len(names(tmp_path)) == 3


def test_another_container_of_the_same_name(left, tmp_path):
    """Its process numbers are not ours."""
    job = left(pid_started=0.0)
    (job / "machine").write_text(f"{platform.node()} other 7")
    assert remove_left(tmp_path) == [] and job.is_dir()


def test_two_machines_of_one_name_where_linux_says_nothing(left, tmp_path, monkeypatch):
    """Elsewhere: the same number means another process on each of them."""
    monkeypatch.setattr(leftovers, "_OF_LINUX", (str(tmp_path / "none"),) * 2)
    monkeypatch.setattr(leftovers.uuid, "getnode", lambda: 0x001122334455)
    monkeypatch.setattr(leftovers.psutil, "boot_time", lambda: 6e8)
    job = left(pid_started=0.0)
    assert (job / "machine").read_text().split()[-2:] == ["001122334455", "10000000"]
    for module, name, value in ((leftovers.uuid, "getnode", 0x001122334456), (leftovers.psutil, "boot_time", 6e8 + 90)):
        with monkeypatch.context() as other:
            other.setattr(module, name, itertools.repeat(value).__next__)
            assert remove_left(tmp_path) == [] and job.is_dir()
    assert len(remove_left(tmp_path)) == 1 and not job.exists()


def test_a_machine_without_a_network_card(left, tmp_path, monkeypatch):
    """Python makes up an address then, another in every process."""
    monkeypatch.setattr(leftovers, "_OF_LINUX", (str(tmp_path / "none"),) * 2)
    monkeypatch.setattr(leftovers.uuid, "getnode", lambda: 0x010000000001)
    job = left(pid_started=0.0)
    monkeypatch.setattr(leftovers.uuid, "getnode", lambda: 0x010000000002)
    assert len(remove_left(tmp_path)) == 1 and not job.exists()


def test_folders_that_another_process_removed_are_no_error(tmp_path):
    with owned(tmp_path, TOKEN) as scratch:
        leftovers.remove(scratch.parent)
        leftovers.remove(scratch.parent)
    assert names(tmp_path) == []


def test_what_cannot_be_removed_at_the_end_is_the_next_one_s(tmp_path, monkeypatch):
    def refuse(path, ignore_errors=False):
        if not ignore_errors:
            raise PermissionError("in use")

    with monkeypatch.context() as busy:
        busy.setattr(leftovers.shutil, "rmtree", refuse)
        with owned(tmp_path, TOKEN):
            pass
    assert names(tmp_path) == [f".unverified-job-{TOKEN}"]
    assert len(remove_left(tmp_path)) == 1 and names(tmp_path) == []


def test_one_that_was_killed_before_it_said_anything(tmp_path):
    job = tmp_path / f".unverified-job-{TOKEN}"
    job.mkdir()
    assert "an unknown machine" in remove_left(tmp_path)[0] and job.is_dir()
    os.utime(job, (time.time() - 4000,) * 2)
    assert len(remove_left(tmp_path)) == 1 and names(tmp_path) == []


def test_what_cannot_be_removed_is_said(left, tmp_path, monkeypatch):
    job = left(pid_started=0.0)

    def refuse(folder):
        raise PermissionError("not yours")

    monkeypatch.setattr(leftovers.shutil, "rmtree", refuse)
    assert "which cannot be removed" in remove_left(tmp_path)[0] and job.is_dir()
