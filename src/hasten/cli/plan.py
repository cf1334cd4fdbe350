"""`hasten plan`: whether a model's training fits into a machine's memory, before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from hasten.cli.output import JsonFlag, Output

OPTIONS: dict[str, Any] = {"name": "plan", "help": "Say whether a model's training fits into memory; loads nothing."}


def command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="'demo', a folder, a config.json, a .gguf file, ollama:NAME, or a hub id such as org/x.",
        ),
    ],
    full: Annotated[bool, typer.Option("--full", help="Train every weight, not an adapter.")] = False,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the adapter.")] = 16,
    target: Annotated[
        list[str] | None, typer.Option(help="A module that gets an adapter; may be repeated. [default: the family's]")
    ] = None,
    storage: Annotated[
        Literal["plain", "nf4", "int8", "fp8"], typer.Option(help="How frozen weights are kept; plain is 16 bits.")
    ] = "plain",
    length: Annotated[int, typer.Option(min=1, help="Tokens of the longest row.")] = 2048,
    batch: Annotated[int, typer.Option(min=1, help="Rows of a micro-batch.")] = 4,
    optimizer: Annotated[
        Literal["adamw", "adamw_8bit"], typer.Option(help="Its state is kept in 32 or 8 bits.")
    ] = "adamw",
    checkpointing: Annotated[
        Literal["auto", "on", "off"], typer.Option(help="Recompute layers in the backward to save memory.")
    ] = "auto",
    machine: Annotated[
        Path | None, typer.Option(help="A machine that `hasten doctor --record FILE` wrote down. [default: this one]")
    ] = None,
    memory: Annotated[str | None, typer.Option(help="A GPU of so much memory instead, such as 24GB or 24GiB.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub repository.")] = None,
    json_mode: JsonFlag = False,
) -> None:
    """Count what training needs, compare it with what a machine has, and name settings that fit.

    Raises:
        HastenError: the model or the machine cannot be read, or the settings contradict each other.
    """
    out = Output(json_mode)

    from hasten.cli.quiet import quiet
    from hasten.errors import ConfigError

    if machine is not None and memory is not None:
        raise ConfigError("--machine", "with --memory", "An estimate is for one machine.", "Leave out one of the two.")
    quiet()
    from hasten.estimate import machines
    from hasten.estimate.answer import answer
    from hasten.estimate.models import describe
    from hasten.estimate.need import Settings
    from hasten.loading.model import LoadOptions

    settings = Settings(
        full=full,
        rank=rank,
        storage=storage,
        length=length,
        batch=batch,
        optimizer=optimizer,
        checkpointing=checkpointing,
    )
    settings.check()
    place = (
        machines.recorded(machine) if machine is not None
        else machines.of_size(memory) if memory is not None
        else machines.this_machine()
    )  # fmt: skip
    found = answer(describe(model, LoadOptions(revision=revision)), settings, place, target or ())
    for line in found.lines():
        out.say(line)
    out.result({"ok": True, **found.as_dict()})
