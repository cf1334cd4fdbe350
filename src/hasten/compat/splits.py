"""One function for a dataset and for a dictionary of splits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hasten.errors import ConfigError


def per_split(dataset: Any, function: Callable[[Any], Any]) -> Any:
    """The function's result for a dataset, or for every split of a `DatasetDict`.

    Args:
        dataset: a `datasets.Dataset`, or a `DatasetDict` of them.
        function: from a dataset to a dataset.

    Raises:
        ConfigError: something else, such as a list of rows or a streamed dataset.
    """
    from datasets import Dataset

    if isinstance(dataset, Dataset):
        return function(dataset)
    if isinstance(dataset, dict) and dataset and all(isinstance(part, Dataset) for part in dataset.values()):
        return type(dataset)({name: function(part) for name, part in dataset.items()})
    streamed = "Iterable" in type(dataset).__name__
    raise ConfigError(
        "dataset",
        f"a {type(dataset).__name__}",
        "It is a datasets.Dataset or a DatasetDict.",
        "Load it with streaming=False." if streamed else "Use Dataset.from_list(rows).",
    )
