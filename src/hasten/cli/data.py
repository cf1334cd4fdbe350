"""`hasten data`: what rows become, seen before training."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from hasten import schema
from hasten.cli.output import JsonFlag, Output
from hasten.data.settings import DataSettings
from hasten.errors import ConfigError, DataError
from hasten.training.config import RunConfig, combine, parse_flags, read_config

_SECTIONS = {field.name for field in dataclasses.fields(RunConfig)}
_OURS = ("model", "data")


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
    "options_metavar": "[FILE-OR-ID]... [OPTIONS]",
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True},
}


def command(
    context: typer.Context,
    model: Annotated[str | None, typer.Option(help="Whose tokenizer and chat template. [default: demo]")] = None,
    config: Annotated[Path | None, typer.Option(help="Take model and data from this training configuration.")] = None,
    rows: Annotated[int, typer.Option(help="How many documents are shown.", min=0)] = 3,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Same as --cache=false.")] = False,
    json_mode: JsonFlag = False,
) -> None:
    """Prepare all rows as training would, and show what became of them; nothing is trained or written but the cache.

    Raises:
        HastenError: as training would: a source, a setting or a model that cannot be used, no usable row.
    """
    out = Output(json_mode)
    sources, flags = _sources_and_flags(context.args)
    settings = combine(
        read_config(config) if config is not None else {},
        _sectioned(parse_flags(flags)),
        {"data": {"source": sources[0] if len(sources) == 1 else sources}} if sources else {},
        {"data": {"cache": False}} if no_cache else {},
        {"model": {"name": model}} if model is not None else {},
    )

    from hasten.cli.quiet import quiet

    quiet()
    from hasten.report.data_view import packing, pieces, show, show_unusable
    from hasten.report.rows_progress import rows_progress
    from hasten.training.rows import model_tokenizer, prepared_rows, source_of

    data = settings.data
    source = source_of(data)
    tokenizer = model_tokenizer(settings.model, data)
    try:
        with rows_progress(out.console, len(source)) as advance:
            prepared = prepared_rows(source, tokenizer, data, on_rows=advance)
    except DataError:
        show_unusable(out.console, source, tokenizer, data)
        raise
    documents = prepared.documents
    show(out.console, prepared, source, tokenizer, rows=rows, pack_length=data.pack_length)
    if prepared.key:
        known = "prepared earlier" if prepared.from_cache else "prepared now"
        out.say(f"\n{known}, cache key {prepared.key}")
    if not json_mode:
        return
    packed = packing(documents, data.pack_length or data.max_length)
    out.result(
        {
            "ok": True,
            **prepared.report.as_dict(),
            "packing": vars(packed) if packed else None,
            "cache_key": prepared.key,
            "from_cache": prepared.from_cache,
            "preview": [
                [vars(piece) for piece in pieces(documents, index, tokenizer)]
                for index in range(min(rows, len(documents)))
            ],
        }
    )


def _sources_and_flags(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Sources may stand anywhere: a word is one unless it is a flag or the value of one."""
    sources: list[str] = []
    flags: list[str] = []
    remaining = iter(words)
    for word in remaining:
        if not word.startswith("-"):
            sources.append(word)
            continue
        flags.append(word)
        if "=" not in word:
            flags.extend(islice(remaining, 1))
    return sources, flags


def _sectioned(values: dict[str, Any]) -> dict[str, Any]:
    """Flags without a section are those of the data path.

    Raises:
        ConfigError: a flag that has no meaning here.
    """
    for name in values:
        if name in _SECTIONS and name not in _OURS:
            rule = "`hasten data` takes settings of `model` and `data`."
            raise ConfigError(f"--{name}", "a setting of training", rule, "Remove it.")
    data = values.get("data", {})
    if not isinstance(data, dict):  # as `hasten train` has it
        data = {"source": data}
    data |= {name: value for name, value in values.items() if name not in _OURS}
    return {**({"model": values["model"]} if "model" in values else {}), "data": data}
