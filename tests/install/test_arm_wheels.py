"""Wheels for Arm Linux: the choice from made-up lock files, and the real resolution where uv and an index are there."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from support import judges

PATH = Path(__file__).parents[2] / "tools" / "arm_wheels.py"
spec = importlib.util.spec_from_file_location("arm_wheels", PATH)
assert spec is not None and spec.loader is not None
arm_wheels = importlib.util.module_from_spec(spec)
spec.loader.exec_module(arm_wheels)

SPARK = arm_wheels.machine_tags("3.12", "2.39")


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["a-1-py3-none-any.whl"], "a-1-py3-none-any.whl"),
        (["a-1-py3-none-any.whl", "a-1-cp312-cp312-manylinux_2_28_aarch64.whl"], 1),
        (["a-1-cp310-abi3-manylinux_2_17_aarch64.manylinux2014_aarch64.whl"], 0),
        (["a-1-py3-none-manylinux2014_aarch64.whl"], 0),
        (["a-1-cp312-cp312-manylinux_2_28_x86_64.whl"], None),
        (["a-1-cp312-cp312-musllinux_1_2_aarch64.whl"], None),
        (["a-1-cp312-cp312-macosx_14_0_arm64.whl"], None),
        (["a-1-cp313-cp313-manylinux_2_28_aarch64.whl"], None),
        (["a-1-cp313-abi3-manylinux_2_28_aarch64.whl"], None),
        (["a-1-cp312-cp312-manylinux_2_41_aarch64.whl"], None),
        ([], None),
    ],
)
def test_the_wheel_such_a_machine_takes(names, chosen):
    assert arm_wheels.chosen_wheel(names, SPARK) == (names[chosen] if isinstance(chosen, int) else chosen)


def test_a_missing_wheel_fails_and_is_named(monkeypatch, capsys):
    there = {"name": "a", "version": "1", "wheels": [{"url": "https://x/a-1-py3-none-any.whl"}]}
    missing = {"name": "b", "version": "2", "wheels": [{"url": "https://x/b-2-cp312-cp312-manylinux_2_28_x86_64.whl"}]}
    locks = {None: [there], "bnb": [there, missing]}
    monkeypatch.setattr(arm_wheels, "resolve", lambda extra, *_: {"packages": locks.get(extra, [])})
    assert arm_wheels.main([]) == 1
    assert capsys.readouterr().err == "error: hasten[bnb]: b 2 has no wheel\n"
    locks["bnb"] = [there]
    assert arm_wheels.main([]) == 0


def test_no_solution_is_said_in_the_resolvers_words(monkeypatch, capsys):
    def resolve(extra, *_):
        if extra == "gguf":
            raise RuntimeError("no wheels with a matching platform tag")
        return {"packages": []}

    monkeypatch.setattr(arm_wheels, "resolve", resolve)
    assert arm_wheels.main([]) == 1
    assert capsys.readouterr().err == "error: hasten[gguf]: no wheels with a matching platform tag\n"


@pytest.mark.slow
def test_everything_has_a_wheel():
    judges.package("uv")
    done = subprocess.run([sys.executable, str(PATH)], capture_output=True, text=True, check=False)
    if "client error" in done.stderr or "Failed to fetch" in done.stderr:
        pytest.skip(f"the package index cannot be reached: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " torch-" in done.stdout and "nvidia_cublas" in done.stdout  # CUDA on Arm, not the CPU's build
