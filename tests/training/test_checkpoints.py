"""Which checkpoints are whole, and that a run goes on from one exactly (A22)."""

import json
import subprocess
import sys

import pytest

from hasten.runs.folder import RunFolder
from hasten.training.checkpoints import COMPLETE, is_whole, last_checkpoint, left_out, mark
from hasten.training.config import combine
from hasten.training.job import train
from support import tiny


def made(folder, *steps):
    for step in steps:
        path = folder / f"checkpoint-{step}"
        (path / "deep").mkdir(parents=True)
        for name in ("weights.bin", "deep/state.bin", "rng_state_1.pth"):
            (path / name).write_bytes(b"1234")
    return folder


def test_only_whole_checkpoints_count(tmp_path):
    made(tmp_path, 2, 9, 10, 11, "old")
    assert last_checkpoint(tmp_path) is None
    assert left_out(tmp_path, None) == ["checkpoint-2", "checkpoint-9", "checkpoint-10", "checkpoint-11"]
    for step in (2, 9, 11):
        mark(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-11" / "weights.bin").write_bytes(b"12")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-9"
    assert left_out(tmp_path, tmp_path / "checkpoint-9") == ["checkpoint-10", "checkpoint-11"]


@pytest.mark.parametrize("name", ["weights.bin", "deep/state.bin"])
def test_a_file_that_is_not_there(tmp_path, name):
    folder = made(tmp_path, 1) / "checkpoint-1"
    mark(folder)
    assert is_whole(folder)
    (folder / name).unlink()
    assert not is_whole(folder)


def test_what_other_processes_write_meanwhile_does_not_count(tmp_path):
    folder = made(tmp_path, 1) / "checkpoint-1"
    mark(folder)
    (folder / "rng_state_1.pth").write_bytes(b"12345678")
    (folder / "later.txt").touch()
    assert is_whole(folder)


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"weights.bin": "4"}', "null"])
def test_a_damaged_mark_is_none(tmp_path, text):
    folder = made(tmp_path, 1) / "checkpoint-1"
    (folder / COMPLETE).write_text(text)
    assert not is_whole(folder)


def test_a_mark_without_sizes(tmp_path):
    folder = made(tmp_path, 1) / "checkpoint-1"
    (folder / COMPLETE).touch()
    assert is_whole(folder)


@pytest.mark.slow
def test_a22_exact_resume_in_a_fresh_process(tiny_values, tmp_path):
    model = tiny.save_model(tmp_path / "model", tiny.llama(tied=False, max_position_embeddings=128))
    values = {
        **tiny_values,
        "model": {"name": str(model)},
        "lora": {"r": 4, "targets": ["q_proj"], "modules_to_save": ["lm_head"], "dropout": 0.1},
        "training": {**tiny_values["training"], "steps": 6, "schedule": "cosine"},
    }
    first, second = (train(combine(values, {"output": str(tmp_path / name)})) for name in ("first", "second"))
    output = tmp_path / "cut"
    arguments = {"training": {**values["training"], "save_every": 2, "keep_checkpoints": 3}, "output": str(output)}
    train(combine(values, arguments))
    # As if it had ended in step 5, and the disk had lost half of the newest checkpoint.
    run = RunFolder.open(output)
    newest = run.checkpoints / "checkpoint-6"
    weights = newest / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    done = subprocess.run(
        [sys.executable, "-m", "hasten", "train", "--resume", str(output), "--json"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "checkpoint-6 is not whole: left out" in done.stderr
    assert "continued from checkpoint-4" in done.stderr
    resumed = json.loads(done.stdout)
    assert first.losses == second.losses and resumed["losses"] == first.losses[4:]
    name = "adapter_model.safetensors"
    files = [folder / name for folder in (first.adapter, second.adapter, output / "adapter")]
    assert files[0].read_bytes() == files[1].read_bytes() == files[2].read_bytes()
