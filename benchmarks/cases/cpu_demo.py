"""The demo's training steps against plain transformers + PEFT on the same rows, same seed, same optimizer.

Arms:
- `plain`: each row alone through the unmodified `PeftModel` (so no padding either), its own loss, gradients
  accumulated over the step's rows; what one writes by hand to avoid padding.
- `hasten`: the trainer of `hasten demo`: the step's rows packed into one, attention within documents, the head on
  learnt positions only.

Both use AdamW at the same learning rate. The arms alternate in blocks of steps, so that a change of the machine's
speed meets both. Losses of each step must agree.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from hasten.blocks.apply import remove
from hasten.cli.demo import settings
from hasten.cli.quiet import quiet
from hasten.report.console import make_console
from hasten.training.config import combine
from hasten.training.job import Job, make_trainer, prepare_job

LEARNING_RATE = 2e-4
LOSS_TOLERANCE = 2e-3
"""Per step, relative. Float32 sums in another order differ by 1e-6 at first; the difference grows with updates."""


class Plain:
    """Plain transformers + PEFT."""

    def __init__(self, job: Job) -> None:
        self.documents = job.training.documents
        self.model = job.model.train()
        remove(self.model)  # transformers' own modules
        self.optimizer = torch.optim.AdamW(trained(self.model), lr=LEARNING_RATE, weight_decay=0.0)

    def step(self, rows: list[int]) -> float:
        tokens = int(self.documents.supervised[rows].sum())
        total = 0.0
        for document in (self.documents[row] for row in rows):
            loss = self.model(
                input_ids=torch.from_numpy(document["input_ids"]).long()[None].to(self.model.device),
                labels=torch.from_numpy(document["labels"]).long()[None].to(self.model.device),
                num_items_in_batch=tokens,
                use_cache=False,
            ).loss
            loss.backward()
            total += loss.item()
        update(self.model, self.optimizer)
        return total


class Hasten:
    """hasten's trainer, one step at a time."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.model = job.model
        self.trainer = make_trainer(job, folder)
        self.optimizer = torch.optim.AdamW(trained(self.model), lr=LEARNING_RATE, weight_decay=0.0)

    def step(self, rows: list[int]) -> float:
        inputs = self.trainer.step_inputs([[row] for row in rows])
        loss = self.trainer.training_step(self.model, inputs).item()
        update(self.model, self.optimizer)
        return loss


def trained(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The adapter's parameters."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def update(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Clip, step, clear."""
    torch.nn.utils.clip_grad_norm_(trained(model), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def run(steps: int = 60, block: int = 5) -> dict[str, object]:
    """Both arms over the same rows; returns their figures."""
    quiet()
    with TemporaryDirectory() as folder:
        config = combine(settings(steps, None, Path(folder)), {"training": {"samples": 0}, "data": {"heldout": 0}})
        console = make_console(sys.stderr)
        jobs = [prepare_job(config, console) for _ in range(2)]
        arms = {"plain": Plain(jobs[0]), "hasten": Hasten(jobs[1], Path(folder))}
        size = config.training.batch_size
        documents = jobs[0].training.documents
        order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(0)).tolist()
        batches = [order[start : start + size] for start in range(0, steps * size, size)]
        losses: dict[str, list[float]] = {name: [] for name in arms}
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        for start in range(0, steps, block):
            for name, arm in arms.items():
                for batch in batches[start : start + block]:
                    began = time.perf_counter()
                    losses[name].append(arm.step(batch))
                    seconds[name].append(time.perf_counter() - began)
    real = [int(documents.lengths[batch].sum()) for batch in batches]
    worst = max(abs(a - b) / a for a, b in zip(losses["plain"], losses["hasten"], strict=True))
    if worst > LOSS_TOLERANCE:
        raise SystemExit(f"losses disagree by {worst:.2e}: nothing is published")
    figures = {}
    for name in arms:
        per_token = [1e3 * second / count for second, count in zip(seconds[name], real, strict=True)]
        figures[name] = {
            "real_tokens_per_s": sum(real) / sum(seconds[name]),
            "ms_per_real_token_median": statistics.median(per_token),
            "step_s_median": statistics.median(seconds[name]),
            "first_loss": losses[name][0],
            "last_loss": losses[name][-1],
        }
    return {
        "steps": steps,
        "rows_per_step": size,
        "real_tokens": sum(real),
        "worst_relative_loss_difference": worst,
        "arms": figures,
        "speedup": figures["hasten"]["real_tokens_per_s"] / figures["plain"]["real_tokens_per_s"],
    }
