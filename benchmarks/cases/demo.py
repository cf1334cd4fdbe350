"""`hasten demo --json`, twice: its figures, how long a user waits, and whether the second run repeats the first."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

KEPT = (
    "steps",
    "heldout_loss_before",
    "heldout_loss_after",
    "supervised_tokens_per_s",
    "real_tokens_per_s",
    "peak_bytes",
    "train_s",
    "total_s",
    "reload_equal",
)


def run(steps: int = 60) -> dict[str, object]:
    """Run the command twice; returns the second run's figures (the first may have converted the model)."""
    with TemporaryDirectory() as folder:
        runs = [_demo(Path(folder) / name, steps) for name in ("first", "second")]
    (first, first_s), (second, second_s) = runs
    return {
        **{name: second[name] for name in KEPT},
        "losses": second["losses"],
        "samples": second["samples"],
        "wall_s": second_s,
        "wall_s_first": first_s,
        "losses_repeat": first["losses"] == second["losses"],
        "samples_repeat": first["samples"] == second["samples"],
    }


def _demo(output: Path, steps: int) -> tuple[dict[str, object], float]:
    command = [sys.executable, "-m", "hasten", "demo", "--json", "--steps", str(steps), "--output", str(output)]
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout), time.perf_counter() - started
