"""`hasten doctor`: what is right and wrong with this machine, and what to type against it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from hasten.cli.output import DEFAULT_RUNS, JsonFlag, Output
from hasten.files import make_folder, write_json
from hasten.hardware.doctor import examine, verdict
from hasten.hardware.evidence import Evidence, load_evidence
from hasten.hardware.finding import Finding

OPTIONS: dict[str, Any] = {
    "name": "doctor",
    "help": "Look at this machine: driver, torch, Triton, compilers, memory, packages, disks. Nothing is changed. "
    "Exit code 0 without faults, 1 with faults.",
}

_FAULTS = 1
_COLOURS = {"ok": "green", "note": "cyan", "warning": "yellow", "fault": "bold red", "skipped": "dim"}


def command(
    evidence: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Judge a recorded machine instead of this one.")
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write what was read, without names of people, so that it can be sent."),
    ] = None,
    hub: Annotated[bool, typer.Option("--hub", help="Ask the hub whether it answers; nothing else uses a network.")] = (
        False
    ),
    json_mode: JsonFlag = False,
) -> None:
    """Examine a machine and show what was found.

    Args:
        evidence: a record to judge.
        record: where to write what was read.
        hub: whether to ask the hub.
        json_mode: whether to print one JSON object.

    Raises:
        ConfigError: the record cannot be used.
        StorageError: the record cannot be written.
        Exit: with 1, where there are faults.
    """
    output = Output(json_mode)
    if record:  # before a minute of reading
        make_folder(record.absolute().parent)
    machine = load_evidence(evidence) if evidence else _read(hub)
    if record:
        _write(record, machine)
    findings = examine(machine)
    faults = sum(finding.state == "fault" for finding in findings)
    _show(output, machine, findings)
    if record:
        output.say(f"\nWhat was read is in {record}, without names of people or of this machine.")
    said = verdict(findings)
    output.say(f"\n{said}")
    told = [finding.as_dict() for finding in findings]
    output.result({"ok": not faults, "source": machine.source, "verdict": said, "findings": told})
    if faults:
        raise typer.Exit(_FAULTS)


def _read(hub: bool) -> Evidence:
    from hasten.hardware.reading import read_evidence
    from hasten.loading.model import CACHE

    return read_evidence(CACHE, DEFAULT_RUNS, hub=hub)


def _write(path: Path, machine: Evidence) -> None:
    from hasten.hardware.redact import home, names_here, redacted

    write_json(path, redacted(machine.as_dict(), names_here(), [home()]))


def _show(output: Output, machine: Evidence, findings: tuple[Finding, ...]) -> None:
    if machine.source:
        output.say(f"{machine.source}\n")
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column("state", no_wrap=True)
    table.add_column("subject")
    table.add_column("found", overflow="fold")
    for finding in findings:
        # Text, not str: what programs print is never markup.
        table.add_row(
            Text(finding.state, style=_COLOURS[finding.state]),
            Text(finding.subject),
            Text(finding.found),
        )
    output.console.print(table, highlight=False)
    for finding in findings:
        if finding.remedy:
            output.say(f"\n{finding.state}: {finding.subject}")
            for line in finding.remedy.splitlines():
                output.say(f"  {line}")
