"""`hasten stop`: asking a running job to stop, or only to save or to evaluate."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hasten.cli.output import DEFAULT_RUNS, JsonFlag, Output, RunsFolder
from hasten.errors import ConfigError
from hasten.runs.control import request
from hasten.runs.listing import find_run

OPTIONS: dict[str, Any] = {"name": "stop", "help": "Ask a running job to save a checkpoint and stop."}

_WORDS = {"stop": "save a checkpoint and stop", "save": "save a checkpoint", "evaluate": "evaluate"}


def command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run: its name, its path, or 'last'.")],
    save: Annotated[bool, typer.Option("--save", help="Only save a checkpoint; the job goes on.")] = False,
    evaluate: Annotated[bool, typer.Option("--evaluate", help="Only evaluate; the job goes on.")] = False,
    runs: RunsFolder = DEFAULT_RUNS,
    json_mode: JsonFlag = False,
) -> None:
    """Ask a running job for something; it looks at its next step.

    Args:
        run: its name, its path, or ``last``.
        save: only save a checkpoint.
        evaluate: only evaluate.
        runs: the folder that holds the runs.
        json_mode: whether to print one JSON object.

    Raises:
        ConfigError: both `save` and `evaluate` were given.
        RunError: there is no such run, or its job is not alive.
    """
    output = Output(json_mode)
    if save and evaluate:
        raise ConfigError(
            "hasten stop", "both --save and --evaluate", "One request at a time.", "Call it twice, or leave one out."
        )
    what = "save" if save else "evaluate" if evaluate else "stop"
    folder = find_run(runs, run)
    request(folder, what)
    output.result({"ok": True, "name": folder.name, "path": str(folder.path), "requested": what})
    output.say(f"Asked {folder.name} to {_WORDS[what]} at its next step.")
