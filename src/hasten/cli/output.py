"""What every command shares: where people's text goes, where programs' JSON goes, and the common options.

With ``--json`` exactly one JSON object is written to standard output; everything else goes to standard error. Without
it, people's text goes to standard output.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hasten.report.console import SurvivingStream, make_console
from hasten.runs.folder import plain

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, the rest on stderr.")]
RunsFolder = Annotated[Path, typer.Option("--runs", help="The folder that holds the runs.")]
DEFAULT_RUNS = Path("runs")


class Output:
    """Where one command writes.

    Args:
        json_mode: whether ``--json`` was given.
    """

    def __init__(self, json_mode: bool) -> None:
        self.json_mode = json_mode
        self.console: Console = make_console(sys.stderr if json_mode else sys.stdout)

    def say(self, text: object = "", *, markup: bool = False) -> None:
        """Print text for people; a closed reader is ignored."""
        self.console.print(text, markup=markup, highlight=False, soft_wrap=True)

    def result(self, value: dict[str, object]) -> None:
        """Print the command's one JSON object; does nothing without ``--json``."""
        if self.json_mode:
            write_json_line(value)


def write_json_line(value: dict[str, object]) -> None:
    """One JSON object on standard output, in ASCII so that any encoding carries it; a closed reader is ignored."""
    stream = SurvivingStream(sys.stdout)
    stream.write(json.dumps(plain(value)) + "\n")
    stream.flush()
