"""What 8-bit products cost where every weight is trained: the embedded model on real rows, as scripts write it.

    python benchmarks/run.py precision_full rows=alpaca.json [steps=200]

Runs that differ in nothing else: bfloat16, the same with other rows first (how far two runs are apart by chance), and
8-bit products. Held-out loss is measured with the weights as they are; losses of steps are those of the products that
are learnt with. No bound: 8-bit products are used where they are asked for.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ARMS: dict[str, tuple[str, int]] = {"bf16": ("bf16", 0), "bf16-other-order": ("bf16", 1), "fp8": ("fp8", 0)}


def run(rows: str, steps: int = 200, heldout: int = 200) -> dict[str, Any]:
    """All runs."""
    found: dict[str, Any] = {}
    for name, (compute, seed) in ARMS.items():
        found[name] = _run(rows, compute, seed, steps, heldout)
        print(name, {key: value for key, value in found[name].items() if key != "losses"}, file=sys.stderr, flush=True)
    base = found["bf16"]["heldout_loss_after"]
    excess = {name: found[name]["heldout_loss_after"] / base - 1.0 for name in found}
    return {"steps": steps, "rows": Path(rows).name, "excess": excess, "arms": found}


def _run(rows: str, compute: str, seed: int, steps: int, heldout: int) -> dict[str, Any]:
    """The first rows are held out."""
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
            learning_rate=2e-5, max_length=1024, logging_steps=1, save_strategy="no", report_to="none", seed=seed,
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
