"""`hasten verify --json`, some times: how long a user waits for a verdict, and what it is made of."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

KEPT = (
    "verdict",
    "checks",
    "notes",
    "steps",
    "train_s",
    "total_s",
    "first_step_s",
    "supervised_tokens_per_s",
    "peak_bytes",
)


def run(rounds: int = 2) -> dict[str, Any]:
    """Every round is a command of its own, Python's start included. The embedded model is there already."""
    from hasten.loading.demo import demo_folder
    from hasten.loading.model import CACHE

    demo_folder(CACHE / "models")
    with TemporaryDirectory() as folder:
        runs = [_verify(Path(folder) / str(number)) for number in range(rounds)]
    return {"wall_s_median": statistics.median(one["wall_s"] for one in runs), "runs": runs}


def _verify(output: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "hasten", "verify", "--json", "--output", str(output)]
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    seconds = time.perf_counter() - started
    if not done.stdout.strip():
        raise SystemExit(f"verify: ended with {done.returncode} and said nothing")
    said = json.loads(done.stdout)
    return {**{name: said.get(name) for name in KEPT}, "wall_s": seconds}
