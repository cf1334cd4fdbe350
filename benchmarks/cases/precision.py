"""What few bits cost in learning: the embedded model on real rows, held-out loss after the same steps.

    python benchmarks/run.py precision rows=alpaca.json [steps=200]

Runs that differ in nothing else: frozen weights in 16 bits, NF4, or 8 bits (`w8` floats, `int8` whole numbers), their
products in bfloat16 or in 8-bit floats. Held-out loss is measured as everywhere, with the weights as they are kept;
losses of steps are those of the products that are learnt with. Raises where runs with 8-bit products end more than half
a percent above bfloat16's on the same weights.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hasten.cli.quiet import quiet
from hasten.report.console import make_console
from hasten.training.config import combine
from hasten.training.job import train

ALLOWED = 0.005
ARMS: dict[str, tuple[str, str]] = {
    "bf16": ("", "bf16"),
    "fp8": ("", "fp8"),
    "nf4": ("load_in_4bit", "bf16"),
    "nf4-fp8": ("load_in_4bit", "fp8"),
    "w8": ("load_in_fp8", "bf16"),
    "w8-fp8": ("load_in_fp8", "fp8"),
    "int8": ("load_in_8bit", "bf16"),
}
PAIRS = (("fp8", "bf16"), ("nf4-fp8", "nf4"), ("w8-fp8", "w8"))


def run(rows: str, steps: int = 200, heldout: int = 200) -> dict[str, Any]:
    """All runs; raises where the bound is broken."""
    quiet()
    found: dict[str, Any] = {}
    for name, (kept, compute) in ARMS.items():
        with TemporaryDirectory() as folder:
            values = {
                "model": {"name": "demo", "compute": compute, **({kept: True} if kept else {})},
                "data": {"source": rows, "heldout": heldout, "max_length": 1024},
                "training": {"steps": steps, "batch_size": 8, "accumulation": 2, "learning_rate": 2e-4, "samples": 0},
                "output": str(Path(folder) / "run"),
            }
            result = train(combine({}, values), console=make_console(sys.stderr))
        found[name] = {
            "heldout_loss_before": result.heldout_loss_before,
            "heldout_loss_after": result.heldout_loss_after,
            "mean_of_last_20": sum(result.losses[-20:]) / 20,
            "fallbacks": result.fallbacks,
            "losses": result.losses,
        }
        print(name, {key: value for key, value in found[name].items() if key != "losses"}, file=sys.stderr, flush=True)
    excess, of_steps = (
        {arm: found[arm][key] / found[base][key] - 1.0 for arm, base in PAIRS}
        for key in ("heldout_loss_after", "mean_of_last_20")
    )
    if not max(excess.values()) <= ALLOWED:
        raise SystemExit(f"8-bit products end higher than allowed ({ALLOWED:.1%}): {excess}")
    return {
        "steps": steps,
        "rows": Path(rows).name,
        "allowed": ALLOWED,
        "excess": excess,
        "excess_of_steps": of_steps,
        "arms": found,
    }
