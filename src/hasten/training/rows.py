"""The rows of a job: opened, divided, and tokenized with the model's tokenizer, before any weights are loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hasten.cache import CACHE
from hasten.data.named_templates import resolve_template
from hasten.data.prepare import Prepared, prepare, split
from hasten.data.rows import RowSource
from hasten.data.settings import DataSettings
from hasten.data.sources import open_rows
from hasten.loading.model import LoadOptions, load_tokenizer
from hasten.loading.settings import ModelSettings


def source_of(settings: DataSettings, rows: Any = None) -> RowSource:
    """All rows that the settings name, within their limit, none held out.

    Raises:
        ConfigError, DataError: as `hasten.data.sources.open_rows`.
    """
    return split(open_rows(settings, rows), replace(settings, heldout=0))[0]


def options_of(settings: ModelSettings) -> LoadOptions:
    """How a model is loaded, but for what the Plan decides."""
    return LoadOptions(
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
        use_safetensors=settings.use_safetensors,
        widen=settings.load_in_16bit,
    )


def model_tokenizer(model: ModelSettings, data: DataSettings) -> Any:
    """The model's tokenizer, with the chat template that the settings ask for.

    Raises:
        ModelError: there is no such model.
        ConfigError: there is no such template.
    """
    tokenizer = load_tokenizer(model.name, options_of(model))
    if data.template:
        tokenizer.chat_template = resolve_template(data.template, tokenizer)
    return tokenizer


def prepared_rows(
    source: RowSource,
    tokenizer: Any,
    settings: DataSettings,
    on_rows: Callable[[int], None] | None = None,
) -> Prepared:
    """Rows as documents, from the cache where they are known.

    Args:
        source: the rows.
        tokenizer: the model's.
        settings: of the data path.
        on_rows: told of rows that are done.

    Raises:
        DataError: no usable row.
    """
    cache = CACHE / "data" if settings.cache else None
    return prepare(source, tokenizer, settings, cache=cache, on_rows=on_rows)
