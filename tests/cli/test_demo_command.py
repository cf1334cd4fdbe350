"""The main job, end to end, on fewer steps; real model, real rows, fresh processes."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def demo(folder, *arguments):
    command = [sys.executable, "-m", "hasten", "demo", "--json", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout), done.stderr


def test_demo_learns_saves_reloads_and_repeats(demo_model_folder, tmp_path):
    first, said = demo(tmp_path, "--steps", "8", "--output", "first")
    assert len(first["losses"]) == first["steps"] == 8
    assert first["heldout_loss_after"] < first["heldout_loss_before"]
    assert first["reload_equal"] is True
    assert first["supervised_tokens_per_s"] > 0
    assert 0.5 * 2**30 < first["peak_bytes"] < 4 * 2**30
    assert os.path.isfile(os.path.join(first["adapter"], "adapter_model.safetensors"))
    assert os.path.isfile(first["page"])
    for expected in ("held-out loss before", "question", "before", "after", "rows: packed"):
        assert expected in said
    second, _ = demo(tmp_path, "--steps", "8", "--output", "second")
    assert second["losses"] == first["losses"]
    assert second["samples"] == first["samples"]


def test_closing_the_reader_does_not_end_the_job(demo_model_folder, tmp_path):
    from hasten.runs.folder import RunFolder

    command = f"{sys.executable} -m hasten demo --steps 2 --output run | head -n 1"
    subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, timeout=900, check=False)
    run = RunFolder.open(tmp_path / "run")
    # `head` is gone after one line; the pipeline returns when the job has ended.
    assert run.status().state == "finished"
    assert (run.adapter / "adapter_model.safetensors").is_file()
