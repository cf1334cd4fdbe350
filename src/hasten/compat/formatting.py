"""`formatting_func`: a script's function from rows to texts, applied before trl sees the rows.

Scripts written for Unsloth return a list of strings, from a batch of rows (a dict of lists) or from one row. trl's own
convention, one string for one row, is refused with the way out, because the two cannot be told apart safely.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hasten.errors import ConfigError

TEXT = "text"


def format_dataset(dataset: Any, function: Callable[[Any], Any], num_proc: int | None) -> Any:
    """A dataset whose only column is the formatted text.

    Args:
        dataset: a `datasets.Dataset` or `IterableDataset`.
        function: from rows to a list of strings.
        num_proc: worker processes for a `Dataset`.

    Raises:
        ConfigError: the function returns something else.
    """
    first = next(iter(dataset))
    batched = _takes_batches(first, function)
    columns = list(first)

    def texts(batch: dict[str, list[Any]]) -> dict[str, list[str]]:
        if batched:
            return {TEXT: _checked(function(batch))}
        rows = (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))
        return {TEXT: [text for row in rows for text in _checked(function(row))]}

    workers = {"num_proc": num_proc} if hasattr(dataset, "num_rows") else {}
    return dataset.map(texts, batched=True, remove_columns=columns, **workers)


def _takes_batches(row: Mapping[str, Any], function: Callable[[Any], Any]) -> bool:
    """Whether two equal rows, given as a batch, make two texts."""
    try:
        made = function({name: [value, value] for name, value in row.items()})
    except (TypeError, ValueError, KeyError, AttributeError):  # written for one row: it must work on one
        made = None
    if isinstance(made, list) and len(made) == 2 and all(isinstance(text, str) for text in made):
        return True
    _checked(function(dict(row)))
    return False


def _checked(made: Any) -> list[str]:
    if isinstance(made, list) and all(isinstance(text, str) for text in made):
        return made
    inside = f" of {type(made[0]).__name__}" if isinstance(made, list) and made else ""
    raise ConfigError(
        "formatting_func",
        f"it returned a {type(made).__name__}{inside}",
        "It returns a list of strings.",
        "Return [text], or make a 'text' column with dataset.map and leave formatting_func out.",
    )
