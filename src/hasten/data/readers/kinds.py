"""Which reader a file is for: its suffix says so, with or without `.gz` behind it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hasten.data.readers.csv_table import CsvRows
from hasten.data.readers.files import DataFile
from hasten.data.readers.json_lines import JsonLines
from hasten.data.readers.json_list import read_json
from hasten.data.readers.parquet import ParquetRows
from hasten.data.readers.texts import TextFiles
from hasten.data.rows import RowSource
from hasten.errors import DataError

_READERS: dict[str, Callable[[DataFile], RowSource]] = {
    ".json": read_json,
    ".jsonl": JsonLines,
    ".ndjson": JsonLines,
    ".csv": CsvRows,
    ".tsv": lambda file: CsvRows(file, "\t"),
    ".parquet": ParquetRows,
    ".txt": lambda file: TextFiles([file], file.name),
    ".md": lambda file: TextFiles([file], file.name),
}
TEXTS = (".txt", ".md")
RULE = f"Rows are read from {', '.join(_READERS)} files, and all but Parquet also as .gz."


def kind_of(path: Path) -> str:
    """The suffix that names the reader, or "" when no reader is for such a file."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    packed = suffixes[-1:] == [".gz"]
    kind = suffixes[0] if packed and len(suffixes) == 2 else "".join(suffixes[-1:])
    return kind if kind in _READERS and not (packed and kind == ".parquet") else ""


def open_file(path: Path, name: str) -> RowSource:
    """The rows of a file.

    Args:
        path: where it is.
        name: what messages call it.

    Raises:
        DataError: no reader is for it, or its reader refuses it.
    """
    kind = kind_of(path)
    if not kind:
        found = f"a '{''.join(path.suffixes[-1:])}' file"
        raise DataError(name, found, RULE, "Convert it to JSON lines, or name it by what is in it.")
    return _READERS[kind](DataFile(path, name))
