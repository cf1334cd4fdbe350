"""`hasten data`: what rows become, seen before training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from hasten import schema
from hasten.cli.output import JsonFlag, Output
from hasten.data.settings import DataSettings
from hasten.training.config import RunConfig, combine, parse_flags, read_config

_SECTIONS = {field.name for field in dataclasses.fields(RunConfig)}


def _fields_help() -> str:
    """Every setting with its default, for `--help` (\\b keeps click from re-flowing the lines)."""
    lines = [
        f"--{name}  ({value!r})  {declared.metadata['help']}"
        for name, _, value, declared in schema.fields(DataSettings())
    ]
    return "\b\nEvery setting of the data path is a flag (also as --data.name, and below `data:` in a YAML file):\n" + (
        "\n".join(lines)
    )


OPTIONS: dict[str, Any] = {
    "name": "data",
    "help": "Show what rows become: format, tokens, what is learnt, what is left out and why.",
    "epilog": _fields_help(),
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True},
}


def command(
    context: typer.Context,
    model: Annotated[str | None, typer.Option(help="Whose tokenizer and chat template. [default: demo]")] = None,
    config: Annotated[Path | None, typer.Option(help="Take model and data from this training configuration.")] = None,
    rows: Annotated[int, typer.Option(help="How many documents are shown.", min=0)] = 3,
    json_mode: JsonFlag = False,
) -> None:
    """Prepare all rows as training would, and show what became of them; nothing is trained or written but the cache.

    Raises:
        HastenError: as training would: a source, a setting or a model that cannot be used, no usable row.
    """
    out = Output(json_mode)
    words = list(context.args)
    sources: list[str] = []
    while words and not words[0].startswith("--"):
        sources.append(words.pop(0))
    settings = combine(
        read_config(config) if config is not None else {},
        _sectioned(parse_flags(words)),
        {"data": {"source": sources[0] if len(sources) == 1 else sources}} if sources else {},
        {"model": {"name": model}} if model is not None else {},
    )

    from hasten.cli.quiet import quiet

    quiet()
    from hasten.report.data_view import pieces, show
    from hasten.report.rows_progress import rows_progress
    from hasten.training.rows import model_tokenizer, prepared_rows, source_of

    source = source_of(settings.data)
    tokenizer = model_tokenizer(settings.model, settings.data)
    with rows_progress(out.console, len(source)) as advance:
        prepared = prepared_rows(source, tokenizer, settings.data, on_rows=advance)
    show(out.console, prepared.report, prepared.documents, tokenizer, rows, settings.data.pack_length)
    if prepared.key:
        known = "prepared earlier" if prepared.from_cache else "prepared now"
        out.say(f"\n{known}, cache key {prepared.key}")
    shown = range(min(rows, len(prepared.documents)))
    out.result(
        {
            "ok": True,
            **prepared.report.as_dict(),
            "cache_key": prepared.key,
            "from_cache": prepared.from_cache,
            "preview": [[vars(piece) for piece in pieces(prepared.documents, index, tokenizer)] for index in shown],
        }
    )


def _sectioned(values: dict[str, Any]) -> dict[str, Any]:
    """Flags without a section are those of the data path."""
    data = {name: value for name, value in values.items() if name not in _SECTIONS}
    rest = {name: value for name, value in values.items() if name in _SECTIONS}
    return {**rest, "data": {**rest.get("data", {}), **data}} if data else rest
