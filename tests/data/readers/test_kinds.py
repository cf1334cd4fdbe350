"""The suffix names the reader."""

import gzip
from pathlib import Path

import pytest

from hasten.data.readers.csv_table import CsvRows
from hasten.data.readers.json_lines import JsonLines
from hasten.data.readers.json_list import JsonList
from hasten.data.readers.kinds import kind_of, open_file
from hasten.data.readers.texts import TextFiles
from hasten.errors import DataError


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.json", ".json"),
        ("a.b.JSONL", ".jsonl"),
        ("a.ndjson.gz", ".ndjson"),
        ("a.v1.csv.GZ", ".csv"),
        ("a.parquet", ".parquet"),
        ("a.md", ".md"),
        ("a.parquet.gz", ""),
        ("a.gz", ""),
        ("a.jsonl.zst", ""),
        ("a.xlsx", ""),
        ("json", ""),
        (".json", ""),
        ("a", ""),
    ],
)
def test_the_kind_of_a_name(name, kind):
    assert kind_of(Path(name)) == kind


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "reader", "row"),
    [
        ("a.json", b'[{"a": "1"}]', JsonList, {"a": "1"}),
        ("a.jsonl", b'{"a": "1"}', JsonLines, {"a": "1"}),
        ("a.ndjson", b'{"a": "1"}', JsonLines, {"a": "1"}),
        ("a.csv", b"a;b\n1;2", CsvRows, {"a": "1", "b": "2"}),
        ("a.tsv", b"a;b\tc\n1\t2", CsvRows, {"a;b": "1", "c": "2"}),
        ("a.txt", b"abc", TextFiles, {"text": "abc"}),
        ("A.MD", b"# abc", TextFiles, {"text": "# abc"}),
    ],
)
def test_the_reader_of_a_file(tmp_path, packed, name, content, reader, row):
    path = tmp_path / (name + ".gz" * packed)
    path.write_bytes(gzip.compress(content) if packed else content)
    rows = open_file(path, "mine")
    assert isinstance(rows, reader)
    assert (list(rows), rows[0], rows.name) == ([row], row, "mine")


@pytest.mark.parametrize(
    ("name", "suffix"), [("a.xlsx", ".xlsx"), ("a.parquet.gz", ".gz"), ("a", ""), ("a.arrow", ".arrow")]
)
def test_files_that_no_reader_is_for(tmp_path, name, suffix):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(
        DataError, match=f"mine: a '{suffix}' file. Rows are read from .json, .jsonl.*Convert it to JSON"
    ):
        open_file(tmp_path / name, "mine")
