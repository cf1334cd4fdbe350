"""`hasten demo`: the main job, end to end, on a real model and real rows that any machine has."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hasten.cli.output import DEFAULT_RUNS, JsonFlag, Output, RunsFolder
from hasten.errors import TrainingError

if TYPE_CHECKING:
    from hasten.training.job import Result
    from hasten.training.samples import Sample

OPTIONS = {
    "name": "demo",
    "help": "Train the embedded model on questions about Python's library; show what it learnt. "
    "(`hasten verify` asks whether the installation is right, with a verdict.)",
}


def settings(steps: int, output: Path | None, runs: Path) -> dict[str, object]:
    """The demo's configuration, as plain values."""
    return {
        "model": {"name": "demo"},
        "data": {"source": "python-docs", "heldout": 24},
        "training": {
            "steps": steps,
            "batch_size": 4,
            "accumulation": 1,
            "learning_rate": 2e-4,
            "warmup_steps": min(5, steps),
            "deterministic": True,
            "samples": 2,
            "sample_tokens": 56,
        },
        "runs": str(runs),
        "output": str(output) if output else None,
    }


def command(
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 60,
    output: Annotated[Path | None, typer.Option(help="This run's own folder; a new one in --runs otherwise.")] = None,
    runs: RunsFolder = DEFAULT_RUNS,
    json_mode: JsonFlag = False,
) -> None:
    """Load, adapt, train on real rows, save, reload in a fresh process, and compare."""
    out = Output(json_mode)
    from hasten.cli.quiet import quiet

    quiet()
    from hasten.report.page import write_page
    from hasten.runs.folder import RunFolder
    from hasten.training.config import combine
    from hasten.training.job import train

    config = combine(settings(steps, output, runs))
    result = train(config, console=out.console, command="demo")
    show_samples(out, result.samples)
    show_figures(out, result)
    equal = not result.samples or reloads(result.samples[0], result.adapter, config.training.sample_tokens)
    page = write_page(RunFolder.open(result.run))
    if not equal:
        raise TrainingError(
            str(result.adapter),
            "a fresh process gives another answer",
            "A saved adapter must answer as the trained model did.",
            f"Keep the run folder '{result.run}' and report it.",
        )
    out.say("reloaded in a fresh process: same answer")
    out.say(f"look:  hasten show {result.run}   or open {page}")
    out.say(f"talk:  hasten chat {result.adapter}")
    out.result({"ok": True, **result.as_dict(), "reload_equal": equal, "page": str(page)})


def show_samples(out: Output, samples: list[Sample]) -> None:
    """Print questions with their answers before and after training."""
    for sample in samples:
        out.say(f"\nquestion  {sample.prompt}")
        out.say(f"before    {_one_line(sample.before)}")
        out.say(f"after     {_one_line(sample.after)}")


def show_figures(out: Output, result: Result) -> None:
    """Print what a run cost and brought."""
    out.say(
        f"\n{result.steps} steps in {result.train_s:.0f} s: {result.supervised_tokens_per_s:.0f} learnt tokens/s "
        f"({result.real_tokens_per_s:.0f} real tokens/s), peak memory {result.peak_bytes / 2**30:.2f} GiB, "
        f"held-out loss {result.heldout_loss_before:.4f} -> {result.heldout_loss_after:.4f}"
    )
    out.say(f"adapter: {result.adapter}")


def reloads(sample: Sample, adapter: Path, tokens: int) -> bool:
    """Whether a fresh process, with the saved adapter, gives the answer that the trained model gave.

    Raises:
        TrainingError: the adapter cannot be loaded.
    """
    arguments = [sys.executable, "-m", "hasten", "chat", str(adapter), "--json"]
    arguments += ["--message", sample.prompt, "--max-tokens", str(tokens)]
    done = subprocess.run(arguments, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode != 0:
        raise TrainingError(
            str(adapter),
            f"a fresh process could not load it ({done.stderr.strip()[-300:]})",
            "A saved adapter must load.",
            "Report it with the run folder.",
        )
    return json.loads(done.stdout)["answer"] == sample.after


def _one_line(text: str) -> str:
    return " ".join(text.split())
