"""Reading this machine for real, and programs that are missing, hang, fail or print rubbish."""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import pytest

from hasten.hardware import reading as module
from hasten.hardware.child import MARK, torch_facts
from hasten.hardware.evidence import Evidence, Reading, TorchFacts, evidence_of
from hasten.hardware.reading import disk, installed, read_evidence, run


def program(folder: Path, name: str, lines: str) -> str:
    path = folder / name
    path.write_text(f"#!{sys.executable}\nimport os, sys, time\n{lines}\n", "utf-8")
    path.chmod(0o755)
    return str(path)


def test_programs(tmp_path):
    assert run([program(tmp_path, "good", "print('out'); print('err', file=sys.stderr, flush=True)")]).came
    failing = run([program(tmp_path, "bad", "print('why'); sys.exit(9)")])
    assert failing == Reading("why\n", "exit code 9")
    killed = run([program(tmp_path, "killed", "os.kill(os.getpid(), 11)")])
    assert killed.failure == f"signal {int(signal.SIGSEGV)}"
    assert run([str(tmp_path / "missing")]).failure == "not found"
    hanging = run([program(tmp_path, "hangs", "time.sleep(60)")], limit_s=0.3)
    assert hanging.failure == "no answer within 0.3 s"
    (tmp_path / "text").write_text("no program", "utf-8")
    assert run([str(tmp_path / "text")]).failure.startswith("cannot be run")
    assert run(["a\0b"]).failure.startswith("cannot be run")
    assert run([program(tmp_path, "noise", "sys.stdout.buffer.write(bytes(range(256)))")]).came
    assert len(run([program(tmp_path, "long", "print('x' * 1_000_000)")]).text) < 30_000


@pytest.fixture
def no_children(monkeypatch):
    monkeypatch.setattr(module, "_child", lambda what, limit_s=0.0: (None, "not started"))


def test_a_record_of_this_machine(no_children, tmp_path):
    evidence = read_evidence(tmp_path / "no" / "such", tmp_path)
    values = json.loads(json.dumps(evidence.as_dict()))
    assert evidence_of(values, "x") == evidence
    assert evidence.system and evidence.machine and evidence.python.version
    assert evidence.torch.version and evidence.torch.failure == "not started"
    assert evidence.packages["numpy"] and evidence.hub is None
    assert (evidence.disks["cache"].free_bytes or 0) > 0
    assert set(evidence.commands) == {"nvidia-smi", "gpus", "nvcc", "cc"}


def test_only_chosen_variables_are_kept(no_children, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    evidence = read_evidence(tmp_path, tmp_path)
    assert evidence.environment["CUDA_VISIBLE_DEVICES"] == "0"
    assert "hf_secret" not in json.dumps(evidence.as_dict())


def test_the_hub_is_asked_only_on_demand(no_children, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "_hub", lambda: asked.append(1) or Reading("5 bytes"))
    assert read_evidence(tmp_path, tmp_path).hub is None and not asked
    assert read_evidence(tmp_path, tmp_path, hub=True).hub == Reading("5 bytes") and asked


def test_this_process_groups_and_those_above(monkeypatch):
    monkeypatch.setattr(
        module,
        "_file",
        lambda path: Reading("3:memory:/a/b\n0::/c\n" if path == "/proc/self/cgroup" else "1"),
    )
    paths = set(module._files())
    assert {f"/sys/fs/cgroup/memory{group}/memory.limit_in_bytes" for group in ("/a/b", "/a", "")} <= paths
    assert {"/sys/fs/cgroup/c/memory.max", "/sys/fs/cgroup/memory.max"} <= paths


def test_small_readings(tmp_path):
    assert installed("pytest") and installed("no-such-package-anywhere") == ""
    assert disk(tmp_path / "a" / "b").total_bytes == disk(tmp_path).total_bytes
    assert module._file(str(tmp_path / "missing")) is None
    assert (module._file(str(tmp_path)) or Reading()).failure
    assert all(isinstance(value, int) for value in module._limits().values())


def test_a_child_that_says_nothing(monkeypatch):
    monkeypatch.setattr(module, "run", lambda *_: Reading("Traceback\nOSError: libcudart.so.13\n", "exit code 1"))
    value, failure = module._child("torch")
    assert value is None and failure == "exit code 1: OSError: libcudart.so.13"
    assert module._torch().failure == failure
    done: Future[TorchFacts] = Future()
    done.set_result(TorchFacts(version="2", available=True))
    if installed("bitsandbytes"):
        works = module._bitsandbytes(done).works
        assert works and works.failure == failure


def public(version):
    """Without the build, which the package's metadata may leave out."""
    return version.partition("+")[0]


def test_what_torch_tells_fits_the_record():
    facts = evidence_of({"torch": torch_facts()}, "x").torch
    assert public(facts.version) == public(installed("torch")) and not facts.failure


@pytest.mark.slow
def test_children_need_nothing_of_hasten(tmp_path):
    script = Path(module.__file__).with_name("child.py")
    (tmp_path / "torch.py").write_text("raise SystemExit('a file of the user')", "utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-P", str(script), "torch"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith(MARK))
    assert public(json.loads(line.removeprefix(MARK))["version"]) == public(installed("torch"))


@pytest.mark.slow
def test_everything_for_real(tmp_path):
    evidence = read_evidence(tmp_path, tmp_path)
    assert isinstance(evidence, Evidence) and not evidence.torch.failure
    if installed("bitsandbytes"):
        assert evidence.bitsandbytes.works and evidence.bitsandbytes.works.came
    if installed("triton") and not evidence.torch.available:
        assert evidence.triton.kernel is None and "ptxas" in evidence.triton.bundled
