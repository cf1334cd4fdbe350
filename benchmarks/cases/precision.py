"""What few bits cost in learning: the embedded model on real rows, held-out loss after the same steps.

    python benchmarks/run.py precision rows=alpaca.json [steps=200]

Runs that differ in nothing else: frozen weights in 16 bits, NF4, or 8 bits (`w8` floats, `int8` whole numbers), their
products in bfloat16 or in 8-bit floats. Held-out loss is measured as everywhere, with the weights as they are kept;
losses of steps are those of the products that are learnt with. `full` trains every weight, in bfloat16, without
adapters. Raises where runs with 8-bit products end more than half a percent above bfloat16's on the same weights.
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
FULL = {"full": "bf16", "full-fp8": "fp8"}
PAIRS = (("fp8", "bf16"), ("nf4-fp8", "nf4"), ("w8-fp8", "w8"), ("full-fp8", "full"))


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
        _say(name, found[name])
    for name, compute in FULL.items():
        found[name] = _full(rows, compute, steps, heldout)
        _say(name, found[name])
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


def _full(rows: str, compute: str, steps: int, heldout: int) -> dict[str, Any]:
    """A run of full fine-tuning, as scripts write it: the first rows are held out."""
    import json

    from datasets import Dataset

    from hasten import FastLanguageModel, SFTConfig, SFTTrainer

    model, tokenizer = FastLanguageModel.from_pretrained("demo", full_finetuning=True, compute=compute)
    texts = [
        [
            {"role": "user", "content": "\n".join(part for part in (row["instruction"], row.get("input")) if part)},
            {"role": "assistant", "content": row["output"]},
        ]
        for row in json.loads(Path(rows).read_text(encoding="utf-8"))
    ]
    held, learnt = (Dataset.from_dict({"messages": part}) for part in (texts[:heldout], texts[heldout:]))
    with TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=8, gradient_accumulation_steps=2,
            learning_rate=2e-5, max_length=1024, logging_steps=1, save_strategy="no", report_to="none", seed=0,
        )  # fmt: skip
        trainer = SFTTrainer(model=model, tokenizer=tokenizer, train_dataset=learnt, eval_dataset=held, args=arguments)
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        after = trainer.evaluate()["eval_loss"]
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return {
        "heldout_loss_before": before,
        "heldout_loss_after": after,
        "mean_of_last_20": sum(losses[-20:]) / len(losses[-20:]),
        "losses": losses,
    }


def _say(name: str, found: dict[str, Any]) -> None:
    print(name, {key: value for key, value in found.items() if key != "losses"}, file=sys.stderr, flush=True)
