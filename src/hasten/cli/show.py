"""`hasten show`: one run in the terminal, and its page for the browser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from hasten.cli.output import DEFAULT_RUNS, JsonFlag, Output, RunsFolder
from hasten.cli.runs import losses
from hasten.report.console import has_blocks
from hasten.report.page import write_page
from hasten.report.plot import line_plot
from hasten.runs.folder import RunFolder
from hasten.runs.listing import RunSummary, find_run, summarize

OPTIONS: dict[str, Any] = {"name": "show", "help": "Show a run and its loss curve, and write its HTML page."}

_WIDEST = 100


def command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run: its name, its path, or 'last'.")],
    runs: RunsFolder = DEFAULT_RUNS,
    json_mode: JsonFlag = False,
) -> None:
    """Show a run and its loss curve, and write its HTML page.

    Args:
        run: its name, its path, or ``last``.
        runs: the folder that holds the runs.
        json_mode: whether to print one JSON object.

    Raises:
        RunError: there is no such run, or it is damaged.
        StorageError: the page could not be written.
    """
    output = Output(json_mode)
    folder = find_run(runs, run)
    summary = summarize(folder.path)
    message = _message(folder, summary)
    _say(output, folder, summary, message)
    page = write_page(folder)
    output.say(f"page   {page}")
    header = folder.record().get("header", [])
    again, result = ([], None) if summary.reason else (folder.resumptions(), folder.result())
    output.result(
        {
            "ok": True,
            **summary.as_dict(),
            "message": message,
            "header": header,
            "resumed": again,
            "result": result,
            "page": str(page),
        }
    )


def _message(folder: RunFolder, summary: RunSummary) -> str:
    status = None if summary.reason else folder.status()
    return "" if status is None else status.message


def _fallbacks(job: Mapping[str, Any]) -> list[str]:
    header = job.get("header")
    rows = [row for row in header if isinstance(row, dict)] if isinstance(header, list) else []
    return [f"{row.get('part')}: {row.get('choice')} ({row.get('why')})" for row in rows if row.get("fallback")]


def _say(output: Output, folder: RunFolder, summary: RunSummary, message: str) -> None:
    steps = f"{summary.step}/{summary.total_steps}" if summary.total_steps else str(summary.step)
    output.say(f"run    {summary.name}")
    output.say(f"state  {summary.state}" + (f" ({summary.reason or message})" if summary.reason or message else ""))
    if summary.model:
        output.say(f"model  {summary.model}")
    output.say(f"step   {steps}")
    output.say(f"loss   {losses(summary)}")
    if summary.reason:
        return
    again = folder.resumptions()
    for job in again:
        output.say(f"again  {job.get('time')}: from {job.get('checkpoint') or 'the beginning'}")
    for line in dict.fromkeys(line for job in (folder.record(), *again) for line in _fallbacks(job)):
        output.say(f"note   {line}")
    rows = [row for row in folder.metrics() if "loss" in row]
    if rows:
        ends = (rows[0].get("step", 1), rows[-1].get("step", len(rows)))
        width = min(output.console.width, _WIDEST)
        plot = line_plot(
            [row["loss"] for row in rows],
            width,
            title="training loss",
            ascii=not has_blocks(output.console),
            steps=ends,
        )
        output.say()
        output.say(plot)
        output.say()
