"""`hasten run`: an unmodified script written for unsloth, with hasten in its place."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hasten.cli.output import JsonFlag, Output
from hasten.compat.script import run_script

OPTIONS: dict[str, Any] = {
    "name": "run",
    "help": "Run a script written for unsloth, unmodified, with hasten in its place.",
    # Everything after the script's name is the script's.
    "context_settings": {
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "allow_interspersed_args": False,
    },
}


def command(
    context: typer.Context,
    script: Annotated[Path, typer.Argument(metavar="SCRIPT", help="The Python file; its own arguments follow it.")],
    json_mode: JsonFlag = False,
) -> int:
    """Run a script written for unsloth, unmodified, with hasten in its place.

    Args:
        context: holds the script's own arguments.
        script: the Python file.
        json_mode: whether to print one JSON object at the end; the script's output then goes to standard error.

    Returns:
        The script's exit code.

    Raises:
        ConfigError: there is no such file.
    """
    output = Output(json_mode)
    with contextlib.redirect_stdout(sys.stderr) if json_mode else contextlib.nullcontext():
        result = run_script(script, context.args)
    output.result(result.as_dict())
    if result.exit_code:
        raise typer.Exit(result.exit_code)
    return 0
