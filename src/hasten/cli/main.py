"""The `hasten` program: its commands, and how an error becomes one message and an exit code."""

from __future__ import annotations

import itertools
import sys
from typing import cast

import typer

from hasten.cli import cache, chat, data, demo, doctor, export, plan, quantize, run, runs, show, stop, train, verify
from hasten.cli.output import write_json_line
from hasten.errors import HastenError
from hasten.report.console import SurvivingStream

app = typer.Typer(
    name="hasten",
    help="Fine-tune language models faster and in less memory; hand them on unchanged.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for _module in (demo, train, chat, export, data, plan, quantize, run, runs, show, stop, doctor, verify, cache):
    app.command(**_module.OPTIONS)(_module.command)

_INTERRUPTED = 130
# The root of what typer calls a usage error. It comes from click or, in newer versions, from a copy inside typer, so it
# is named through the one subclass that typer exports.
_ClickException = cast(type[typer.BadParameter], typer.BadParameter.__mro__[2])


def main(arguments: list[str] | None = None) -> None:
    """Run one command and leave the process with its exit code.

    A `HastenError` is the user's to mend: one message on standard error (and, with ``--json``, the same as an object
    on standard output) and the exit code of its category. Anything else is a fault of ours and shows its traceback.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        code = app(args=arguments, standalone_mode=False)
    except HastenError as error:
        _tell(str(error), error.as_dict(), arguments)
        code = error.exit_code
    except _ClickException as error:
        message = error.format_message()
        _tell(f"{message} (see `hasten --help`)", {"error": "UsageError", "message": message}, arguments)
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        SurvivingStream(sys.stderr).write("\ninterrupted; what was finished before stays\n")
        code = _INTERRUPTED
    sys.exit(code if isinstance(code, int) else 0)


def _tell(message: str, fields: dict[str, object], arguments: list[str]) -> None:
    SurvivingStream(sys.stderr).write(f"error: {message}\n")
    if _wants_json(arguments):
        write_json_line({"ok": False, **fields})


def _wants_json(arguments: list[str]) -> bool:
    """Whether ``--json`` was meant for us: behind a script's name it is the script's."""
    ours = (
        itertools.takewhile(lambda word: word.startswith("-"), arguments[1:]) if arguments[:1] == ["run"] else arguments
    )
    return "--json" in ours
