"""`hasten verify`: whether an installation trains: a short run that must learn four rows, and a verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hasten.cli.output import DEFAULT_RUNS, JsonFlag, Output, RunsFolder
from hasten.errors import ConfigError

OPTIONS: dict[str, Any] = {
    "name": "verify",
    "help": "Ask whether this installation is right: a short LoRA run that must learn four rows by heart, saved, "
    "reloaded and judged. Exit code 0: passed; 1: failed; others as everywhere. (`hasten demo` shows on many rows what "
    "training is good for; it judges nothing but that the saved adapter answers alike.)",
}
LEARNT = 4
"""Rows to learn, all of them in every step, so that each step's loss is the loss of all."""


def settings(model: str, steps: int) -> dict[str, object]:
    """What differs from the demo: four rows, learnt by heart at a rate that does not fall."""
    return {
        "model": {"name": model},
        "data": {"heldout": LEARNT, "max_length": 256},
        "training": {
            "batch_size": LEARNT,
            "learning_rate": 1e-3,
            "schedule": "constant",
            "warmup_steps": min(5, steps),
            "samples": 1,
            "sample_tokens": 32,
        },
    }


def rows() -> list[dict[str, str]]:
    """Eight short rows of the demo's, from all over the library: four to learn and four to hold out."""
    from hasten.data.stdlib_docs import question_rows

    short = [row for row in question_rows() if len(row["answer"]) <= 110]
    return short[:: max(1, len(short) // (2 * LEARNT))][: 2 * LEARNT]


def command(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="'demo', a folder, a .gguf file, or a hub id. [default: demo]"),
    ] = None,
    named: Annotated[str | None, typer.Option("--model", help="Same as MODEL.")] = None,
    steps: Annotated[int, typer.Option(min=2, help="Optimizer steps; 20 suffice for the embedded model.")] = 60,
    output: Annotated[Path | None, typer.Option(help="This run's own folder; a new one in --runs otherwise.")] = None,
    runs: RunsFolder = DEFAULT_RUNS,
    json_mode: JsonFlag = False,
) -> int:
    """Train on four rows, look at everything that must be so afterwards, and say whether it is.

    Returns:
        The exit code: 0 passed, 1 failed.

    Raises:
        HastenError: the model, the folder or a setting cannot be used.
    """
    if model is not None and named is not None:
        raise ConfigError("--model", f"'{named}' beside '{model}'", "One model is verified.", "Leave out one of them.")
    out = Output(json_mode)
    from hasten.cli.quiet import quiet

    quiet()
    from hasten.cli import demo
    from hasten.report.page import write_page
    from hasten.runs.folder import RunFolder
    from hasten.training.config import combine
    from hasten.training.job import train
    from hasten.training.verdict import adapter_check, fallback_check, learning_check, noted_fallbacks, reload_check

    _banner(out)
    chosen = model or named or "demo"
    config = combine(demo.settings(steps, output, runs), settings(chosen, steps))
    result = train(config, rows=rows(), console=out.console, command="verify")
    run = RunFolder.open(result.run)
    header = run.record()["header"]
    demo.show_samples(out, result.samples)
    demo.show_figures(out, result)
    out.say("(held-out loss may rise: four rows are learnt by heart, which `hasten demo` does not do)")
    if result.first_step_s is not None:
        out.say(f"first step after {result.first_step_s:.1f} s, everything {result.total_s:.0f} s")
    equal = None
    if result.samples:
        equal = demo.reloads(result.samples[0], result.adapter, config.training.sample_tokens)
    checks = [
        learning_check(result.losses, whole=not result.stopped),
        adapter_check(result.adapter),
        reload_check(equal),
        fallback_check(header),
    ]
    noted = noted_fallbacks(header, result.fallbacks)
    passed = all(check.passed for check in checks)
    page = write_page(run)
    out.say()
    for check in checks:
        out.say(f"{'ok    ' if check.passed else 'FAILED'}  {check.name}: {check.found} ({check.rule})")
    for line in noted:
        out.say(f"note    {line}")
    out.say(f"verdict: {'passed' if passed else 'failed'}")
    out.result(
        {
            "ok": passed,
            **result.as_dict(),
            "verdict": "passed" if passed else "failed",
            "checks": [check.as_dict() for check in checks],
            "notes": noted,
            "page": str(page),
        }
    )
    return 0 if passed else 1


def _banner(out: Output) -> None:
    import torch

    import hasten
    from hasten.hardware.probe import probe
    from hasten.training.record import versions

    found = versions()
    machine = probe()
    cuda = f", CUDA {torch.version.cuda}" if torch.version.cuda else ""
    capability = f", compute capability {'.'.join(map(str, machine.capability))}" if machine.capability else ""
    shared = ", memory shared with the CPU" if machine.unified_memory else ""
    out.say(f"hasten {hasten.__version__}: does this installation train?")
    out.say(f"  {machine.name}, {machine.total_bytes / 2**30:.0f} GiB{capability}{shared}")
    out.say(f"  torch {torch.__version__}{cuda}; Triton {_triton()}")
    out.say("  " + ", ".join(f"{name} {version}" for name, version in found.items() if name != "torch"))


def _triton() -> str:
    from hasten.hardware.reading import installed

    return installed("triton") or installed("pytorch-triton") or "not installed"
