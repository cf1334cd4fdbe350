"""`hasten cache`: what lies in hasten's one folder outside of runs, and emptying it."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

from hasten.cache import CACHE, Content, clear, contents, foreign, kinds_named
from hasten.cli.output import JsonFlag, Output
from hasten.errors import ConfigError

OPTIONS: dict[str, Any] = {
    "name": "cache",
    "help": "Show or empty the one folder that hasten writes to outside of runs. Everything in it can be made again; "
    "clear it when no job is running.",
}


def command(
    action: Annotated[Literal["show", "clear"], typer.Argument(help="What to do.")] = "show",
    kind: Annotated[
        str | None, typer.Argument(metavar="[KIND]", help="models, data or judges. [default: all of them]")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Clear without asking.")] = False,
    json_mode: JsonFlag = False,
) -> None:
    """Show what is in the cache, or remove it.

    Raises:
        ConfigError: there is no such kind, or nobody can be asked.
        StorageError: the cache is not a folder of hasten's, or something cannot be removed.
    """
    out = Output(json_mode)
    kinds = kinds_named(kind)
    found = [content for content in contents(CACHE) if content.kind in kinds]
    if action == "show":
        _show(out, found)
        return
    entries = sum(len(content.entries) for content in found)
    size = _size(sum(content.bytes for content in found))
    if entries and not yes and not _agreed(out, f"Remove {entries} entries, {size}, from {CACHE}?"):
        out.say("nothing was removed")
        out.result({"ok": True, "removed": [], "bytes": 0, "left": []})
        return
    done = clear(kinds, CACHE)
    out.say(f"removed {len(done.removed)} entries, {_size(done.bytes)}, from {CACHE}")
    _say_foreign(out, done.left)
    removed, left = ([str(path) for path in paths] for paths in (done.removed, done.left))
    out.result({"ok": True, "removed": removed, "bytes": done.bytes, "left": left})


def _agreed(out: Output, question: str) -> bool:
    if out.json_mode or not sys.stdin.isatty():
        raise ConfigError(
            "--yes", "not given", "Nothing is removed without a yes, and nobody can be asked here.", "Add it."
        )
    return typer.confirm(question)


def _show(out: Output, found: list[Content]) -> None:
    others = foreign(CACHE)
    out.say(f"{CACHE}")
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column("kind")
    table.add_column("entries", justify="right")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("what", overflow="fold")
    for content in found:
        table.add_row(Text(content.kind.name), str(len(content.entries)), _size(content.bytes), Text(content.kind.what))
    out.console.print(table, highlight=False)
    _say_foreign(out, others)
    kinds = {
        content.kind.name: {"entries": [entry.name for entry in content.entries], "bytes": content.bytes}
        for content in found
    }
    out.result({"ok": True, "folder": str(CACHE), "kinds": kinds, "others": [str(path) for path in others]})


def _say_foreign(out: Output, paths: list[Any]) -> None:
    for path in paths:
        out.say(f"not hasten's, stays: {path}")


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
