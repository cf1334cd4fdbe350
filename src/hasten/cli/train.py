"""`hasten train`: an adapter from one YAML file, from flags, or from both (flags win)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hasten import schema
from hasten.cli.output import DEFAULT_RUNS, JsonFlag, Output
from hasten.training.config import RunConfig, combine, parse_flags, read_config


def _fields_help() -> str:
    """Every setting with its default, for `--help` (\\b keeps click from re-flowing the lines)."""
    lines = [
        f"--{name}  ({value!r})  {declared.metadata['help']}"
        for name, _, value, declared in schema.fields(RunConfig())
        if "." in name
    ]
    return "\b\nEvery setting is a field of the YAML file and a flag:\n" + "\n".join(lines)


OPTIONS: dict[str, Any] = {
    "name": "train",
    "help": "Train a LoRA adapter on your rows.",
    "epilog": _fields_help(),
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True},
}


def command(
    context: typer.Context,
    config: Annotated[Path | None, typer.Argument(help="A YAML file with model, data, lora, training.")] = None,
    model: Annotated[str | None, typer.Option(help="Same as --model.name.")] = None,
    data: Annotated[str | None, typer.Option(help="Same as --data.source.")] = None,
    steps: Annotated[int | None, typer.Option(help="Same as --training.steps.")] = None,
    output: Annotated[Path | None, typer.Option(help="This run's own folder; a new one in --runs otherwise.")] = None,
    runs: Annotated[Path | None, typer.Option(help="The folder that holds the runs. [default: runs]")] = None,
    resume: Annotated[str | None, typer.Option(help="Continue this run from its newest complete checkpoint.")] = None,
    json_mode: JsonFlag = False,
) -> None:
    """Train, and write everything about it to a run folder."""
    out = Output(json_mode)
    words = list(context.args)
    if config is not None and str(config).startswith("-"):
        words, config = [str(config), *words], None
    layers: list[dict[str, Any]] = []
    if resume is not None:
        layers.append(_resumed(resume, runs or DEFAULT_RUNS))
    if config is not None:
        layers.append(read_config(config))
    layers.append(parse_flags(words))
    layers.append(_shorthands(model, data, steps, output, runs))
    settings = combine(*layers)

    from hasten.cli.quiet import quiet

    quiet()
    from hasten.report.page import write_page
    from hasten.runs.folder import RunFolder
    from hasten.training.job import train

    result = train(settings, console=out.console, command="train", resume=resume is not None)
    page = write_page(RunFolder.open(result.run))
    out.say(
        f"{'stopped after' if result.stopped else 'finished'} {result.steps} steps: "
        f"{result.supervised_tokens_per_s:.0f} learnt tokens/s, peak memory {result.peak_bytes / 2**30:.2f} GiB"
    )
    out.say(f"adapter: {result.adapter}\nlook:    hasten show {result.run}\ntalk:    hasten chat {result.adapter}")
    out.result({"ok": True, **result.as_dict(), "page": str(page)})


def _resumed(resume: str, runs: Path) -> dict[str, Any]:
    from hasten.runs.listing import find_run

    run = find_run(runs, resume)
    return {**run.record()["config"], "output": str(run.path)}


def _shorthands(
    model: str | None, data: str | None, steps: int | None, output: Path | None, runs: Path | None
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if model is not None:
        values["model"] = {"name": model}
    if data is not None:
        values["data"] = {"source": data}
    if steps is not None:
        values["training"] = {"steps": steps}
    if output is not None:
        values["output"] = str(output)
    if runs is not None:
        values["runs"] = str(runs)
    return values
