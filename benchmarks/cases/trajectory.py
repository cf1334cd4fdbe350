"""200 steps of the embedded model on real rows: does the fast path learn what plain transformers learns?

python benchmarks/run.py trajectory [rows=rows.json] [steps=200]

Three runs over the same rows with the same optimizer: `plain` (unmodified transformers + PEFT, each row alone),
`reversed` (the same, the rows of a step in the opposite order: nothing but the order of sums differs) and `hasten`. The
bound is what the order of sums does by itself: hasten may be no more than three times as far from `plain` as `reversed`
is, at its worst step and in the mean, or than float32's own resolution of a loss where that is more.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from cases.cpu_demo import Hasten, Plain

from hasten.cli.demo import settings
from hasten.cli.quiet import quiet
from hasten.report.console import make_console
from hasten.training.config import combine
from hasten.training.job import prepare_job

TIMES = 3.0
RESOLUTION = 2.0**-20
"""Of a loss, relative: a float32 mean over hundreds of tokens is rounded a few times."""


def run(steps: int = 200, batch: int = 3, rows: str = "", max_length: int = 96) -> dict[str, object]:
    """All three runs; raises where the bound is broken."""
    quiet()
    with TemporaryDirectory() as folder:
        changes = {
            "model": {"dtype": "float32"},
            "training": {"samples": 0},
            "data": {"heldout": 0, "max_length": max_length, **({"source": rows} if rows else {})},
        }
        config = combine(settings(steps, None, Path(folder)), changes)
        console = make_console(sys.stderr)
        arms = {
            "plain": Plain(prepare_job(config, console)),
            "reversed": Plain(prepare_job(config, console)),
            "hasten": Hasten(prepare_job(config, console), Path(folder)),
        }
        documents = arms["plain"].documents
        order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(0)).tolist()
        order = (order * (1 + steps * batch // len(order)))[: steps * batch]
        losses: dict[str, list[float]] = {name: [] for name in arms}
        for start in range(0, steps * batch, batch):
            own = order[start : start + batch]
            for name, arm in arms.items():
                losses[name].append(arm.step(own[::-1] if name == "reversed" else own))
            if start % (20 * batch) == 0:
                print(start // batch, {name: values[-1] for name, values in losses.items()}, file=sys.stderr)
    distance = {name: _distance(losses[name], losses["plain"]) for name in ("reversed", "hasten")}
    for kind in ("worst", "mean"):
        allowed = max(TIMES * distance["reversed"][kind], RESOLUTION)
        if not distance["hasten"][kind] <= allowed:
            raise SystemExit(f"{kind} distance {distance['hasten'][kind]:.2e}, allowed {allowed:.2e}: {distance}")
    return {
        "steps": steps,
        "rows_per_step": batch,
        "max_length": max_length,
        "distance_from_plain": distance,
        "allowed_times_reversed": TIMES,
        "first_losses": {name: values[0] for name, values in losses.items()},
        "mean_of_last_20": {name: sum(values[-20:]) / len(values[-20:]) for name, values in losses.items()},
        "losses": losses,
    }


def _distance(one: list[float], other: list[float]) -> dict[str, float]:
    """Relative: at the worst step, and of the means over all steps."""
    worst = max(abs(a - b) / abs(b) for a, b in zip(one, other, strict=True))
    return {"worst": worst, "mean": abs(sum(one) - sum(other)) / abs(sum(other))}
