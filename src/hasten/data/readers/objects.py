"""Rows that a program hands over: lists, data sets of `datasets`, and iterables, which need a limit.

Whether an object is one of `datasets` is found from its class, so nothing is imported for those that are not.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from hasten.data.readers.text_lines import empty
from hasten.data.rows import ListRows, Row, RowSource, digest_of
from hasten.data.settings import DataSettings
from hasten.errors import ConfigError, DataError, did_you_mean

_RULE = "Rows are a list of mappings, a data set of `datasets`, or with data.limit any iterable of mappings."
_TOGETHER = 256
_DATASETS = ("Dataset", "DatasetDict", "IterableDataset", "IterableDatasetDict")


class DatasetRows(RowSource):
    """A `datasets.Dataset`, whose rows stay where it has them (files that are mapped, as a rule).

    Args:
        dataset: the data set.
        name: what messages call it.
        notes: sentences for the run header.
    """

    def __init__(self, dataset: Any, name: str, notes: Iterable[str] = ()) -> None:
        super().__init__(name, notes)
        # Rows are Python objects here, not the tensors it may be set to make; a transform of the user's is kept.
        self._transformed = dataset.format["type"] == "custom"
        self._dataset = dataset if self._transformed else dataset.with_format(None)

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[Row]:
        if self._transformed:
            yield from self._dataset
            return
        for first in range(0, len(self), _TOGETHER):  # several times faster than row by row
            columns = self._dataset[first : first + _TOGETHER]
            for values in zip(*columns.values(), strict=True):
                yield dict(zip(columns, values, strict=True))

    def _row(self, index: int) -> Row:
        return self._dataset[index]

    def _digest(self) -> str:
        if self._transformed:
            return digest_of(self)
        from pyarrow import BufferOutputStream, ipc

        digest = hashlib.sha256()
        # In tables of one size: how the data set is laid out in files and chunks does not matter.
        for table in self._dataset.with_format("arrow").iter(batch_size=_TOGETHER):
            content = table.combine_chunks().replace_schema_metadata(None)
            with BufferOutputStream() as stream:
                with ipc.new_stream(stream, content.schema) as writer:
                    writer.write_table(content)
                digest.update(stream.getvalue())
        return digest.hexdigest()


def open_object(rows: Any, settings: DataSettings) -> RowSource:
    """The rows of an object.

    Args:
        rows: a `RowSource`, a list of mappings, a `datasets` object, or any iterable of mappings.
        settings: `split` picks from several splits, `limit` ends what may have no end.

    Raises:
        ConfigError: an iterable without `limit`, or a split that is not there.
        DataError: no rows, or an object whose rows cannot be told.
    """
    if isinstance(rows, RowSource):
        return rows
    if kind := _kind_of_datasets(rows):
        return _from_datasets(rows, kind, settings)
    _require_rows(rows)
    if hasattr(rows, "__len__"):
        # Not every data set with a length can be iterated (torch's need not).
        items = rows if isinstance(rows, Iterable) else (rows[index] for index in range(len(rows)))
        return ListRows(_mappings(items, "rows"), "rows")
    if not settings.limit:
        rule = "An iterable has no end that could be waited for."
        raise ConfigError("data.limit", "0 for an iterable", rule, "Set data.limit to the number of rows to read.")
    return first_rows(rows, settings, "rows", "the iterable")


def from_dataset(dataset: Any, name: str, notes: Sequence[str] = ()) -> RowSource:
    """The rows of a `datasets.Dataset`.

    Raises:
        DataError: it has none.
    """
    if not len(dataset):
        raise empty(name, "an empty data set")
    return DatasetRows(dataset, name, notes)


def first_rows(rows: Iterable[Any], settings: DataSettings, name: str, what: str) -> RowSource:
    """The first rows of an iterable, in memory: those to train on and those to hold out, and no more are asked for.

    Args:
        rows: mappings.
        settings: how many, at most: `limit` and `heldout`.
        name: what messages call the source.
        what: what the run header calls it.

    Raises:
        DataError: there are none, or one is no mapping.
    """
    taken = _mappings(islice(rows, settings.limit + settings.heldout), name)
    return ListRows(taken, name, [f"the first {len(taken)} rows of {what}"])


def split_of(splits: Mapping[Any, Any], settings: DataSettings, name: str) -> Any:
    """One of several splits.

    Raises:
        ConfigError: it is not there; those that are there are listed.
    """
    if settings.split not in splits:
        rule = f"The splits of {name} are {', '.join(map(str, splits))}."
        raise ConfigError("data.split", f"'{settings.split}'", rule, did_you_mean(settings.split, splits, "Set one."))
    return splits[settings.split]


def _kind_of_datasets(rows: Any) -> str:
    """The name of the class of `datasets` that an object is an instance of, or ""."""
    names = [cls.__name__ for cls in type(rows).__mro__ if cls.__module__.partition(".")[0] == "datasets"]
    return next((name for name in names if name in _DATASETS), "")


def _from_datasets(rows: Any, kind: str, settings: DataSettings) -> RowSource:
    notes, what = [], "the iterable data set"
    if kind.endswith("Dict"):
        rows = split_of(rows, settings, "this data set")
        notes, what = [f"split '{settings.split}' of the data set"], f"split '{settings.split}'"
    if not kind.startswith("Iterable"):
        return from_dataset(rows, "rows", notes)
    if not settings.limit:
        rule = "It has no end that could be waited for."
        raise ConfigError("data.limit", "0 for an iterable data set", rule, "Set data.limit to the number of rows.")
    return first_rows(rows.with_format(None), settings, "rows", what)


def _require_rows(rows: Any) -> None:
    """Refuse objects that can be iterated, but not row by row."""
    value, remedy = f"an object of type {type(rows).__name__}", ""
    if isinstance(rows, (str, bytes, os.PathLike)):
        remedy = "Name files and data sets in data.source."
    elif isinstance(rows, Mapping):
        remedy = "Pass datasets.Dataset.from_dict(rows) if it has a list for each column, or [rows] if it is one row."
    elif hasattr(rows, "columns"):
        remedy = "Pass datasets.Dataset.from_pandas(rows), or a list with a mapping for each row."
    elif not isinstance(rows, Iterable) and not (hasattr(rows, "__len__") and hasattr(rows, "__getitem__")):
        remedy = "Pass a list with a mapping for each row."
    if remedy:
        raise DataError("rows", value, _RULE, remedy)


def _mappings(rows: Iterable[Any], name: str) -> list[Row]:
    made: list[Row] = []
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            rule = "Every row is a mapping of column names to values."
            raise DataError(name, f"row {number} is of type {type(row).__name__}", rule, "Correct it.")
        made.append(row if isinstance(row, dict) else dict(row))
    if not made:
        raise empty(name, "no rows")
    return made
