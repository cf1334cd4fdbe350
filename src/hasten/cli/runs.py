"""`hasten runs`: the table of runs."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from hasten.cli.output import DEFAULT_RUNS, JsonFlag, Output, RunsFolder
from hasten.runs.listing import RunSummary, list_runs

OPTIONS: dict[str, Any] = {"name": "runs", "help": "List the runs in a folder, the newest first."}

_COLOURS = {"finished": "green", "failed": "red", "dead": "red", "unreadable": "red", "stopped": "yellow"}


def command(runs: RunsFolder = DEFAULT_RUNS, json_mode: JsonFlag = False) -> None:
    """List the runs in a folder, the newest first.

    Args:
        runs: the folder that holds the runs.
        json_mode: whether to print one JSON object.

    Raises:
        RunError: the folder cannot be read.
    """
    output = Output(json_mode)
    found = list_runs(runs)
    output.result({"ok": True, "root": str(runs), "runs": [run.as_dict() for run in found]})
    if json_mode:
        return
    if not found:
        output.say(f"There are no runs in {runs} yet.")
        return
    output.console.print(_table(found), highlight=False)
    for run in found:
        if run.reason:
            output.say(f"{run.name} cannot be read: {run.reason}")


def _table(found: list[RunSummary]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run", overflow="fold")
    table.add_column("state")
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("loss", justify="right", no_wrap=True)
    table.add_column("started (UTC)", no_wrap=True)
    table.add_column("model", overflow="fold")
    for run in found:
        # Text, not str: a name or a model is never markup.
        table.add_row(
            Text(run.name),
            Text(run.state, style=_COLOURS.get(run.state, "")),
            f"{run.step}/{run.total_steps}" if run.total_steps else str(run.step),
            losses(run),
            Text(run.created[:16].replace("T", " ")),
            Text(run.model),
        )
    return table


def losses(run: RunSummary) -> str:
    """The first and the last loss of a run, as people read them."""
    if run.first_loss is None and run.last_loss is None:
        return "-"
    first, last = ("not finite" if loss is None else f"{loss:.4f}" for loss in (run.first_loss, run.last_loss))
    return f"{first} -> {last}"
