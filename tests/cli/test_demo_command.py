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


def test_demo_learns_saves_and_reloads(demo_model_folder, tmp_path):
    first, said = demo(tmp_path, "--steps", "4", "--output", "first")
    assert len(first["losses"]) == first["steps"] == 4
    assert first["heldout_loss_after"] < first["heldout_loss_before"]
    assert first["reload_equal"] is True
    assert first["supervised_tokens_per_s"] > 0
    assert 0.5 * 2**30 < first["peak_bytes"] < 4 * 2**30
    assert os.path.isfile(os.path.join(first["adapter"], "adapter_model.safetensors"))
    assert os.path.isfile(first["page"])
    for expected in ("held-out loss before", "question", "before", "after", "rows: packed"):
        assert expected in said
