"""JSON lines: found once, parsed when asked for, in memory that does not grow with the file."""

import gzip
import json
import os
import pickle
import tracemalloc

import pytest

from hasten.data.readers.files import DataFile
from hasten.data.readers.json_lines import JsonLines
from hasten.data.rows import BrokenRow
from hasten.errors import DataError

ROWS = [{"text": "café\u2028"}, {"text": "a\nb\x85c"}, {"text": "\ud800"}, {"n": [1, {"m": None}]}]


def opened(folder, content, name="a.jsonl"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return JsonLines(DataFile(path, name))


def spelled(row):
    return json.dumps(row, ensure_ascii="\\ud" in json.dumps(row))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("begin", ["", "\ufeff", "\n \r\n", "\ufeff\n"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", "\n \t\n\x0c\n"])
@pytest.mark.parametrize("last", [True, False])
def test_rows_in_any_order(tmp_path, packed, begin, end, last):
    content = (begin + end.join(map(spelled, ROWS)) + (end if last else "")).encode()
    rows = opened(tmp_path, gzip.compress(content) if packed else content, "a.jsonl.gz" if packed else "a.jsonl")
    assert list(rows) == ROWS
    assert [rows[index] for index in (3, 0, 2, 1, -1)] == [ROWS[index] for index in (3, 0, 2, 1, -1)]
    assert (len(rows), rows.place(3), rows.name) == (4, "row 4", "a.jsonl.gz" if packed else "a.jsonl")


@pytest.mark.parametrize("content", ["", "\n", " \n\r\n\t", "\ufeff", "\ufeff \n"])
def test_a_file_without_rows(tmp_path, content):
    with pytest.raises(DataError, match="a.jsonl: an empty file.*Write rows into it"):
        opened(tmp_path, content)


def test_a_key_that_comes_twice_breaks_one_row(tmp_path):
    rows = opened(tmp_path, '{"text": "a"}\n{"text": "b", "text": "c"}\n{"text": "d"}\n')
    for read in (list(rows), [rows[index] for index in range(3)]):
        assert [type(row) for row in read] == [dict, BrokenRow, dict]
        assert isinstance(read[1], BrokenRow) and read[1].reason == "duplicate key 'text'"


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ('{"text": y}', "line 5, column 10 is not JSON (Expecting value)"),
        (' {"text": "y"', "line 5, column 14 is not JSON (Expecting ',' delimiter)"),
        ("[1]", "line 5 is a list"),
        ('{"a": 1}\r{"a": 1}', "line 5, column 10 is not JSON (Extra data)"),
    ],
)
def test_a_faulty_line_is_named_however_it_is_reached(tmp_path, line, value):
    rows = opened(tmp_path, '\n{"text": "x"}\n\n{"text": "x"}\n' + line + "\n")
    assert rows[1] == {"text": "x"}
    for read in (lambda: list(rows), lambda: rows[2]):
        with pytest.raises(DataError) as caught:
            read()
        assert caught.value.value == value


def test_a_byte_that_is_not_utf_8_is_found_before_any_row_is_read(tmp_path):
    with pytest.raises(DataError, match="line 2: byte 0xe9 at offset 27 is not UTF-8.*Convert the file to UTF-8"):
        opened(tmp_path, '{"text": "x"}\n{"text": "caf\xe9"}\n'.encode("latin-1"))
    with pytest.raises(DataError, match="line 2: a NUL byte at offset 16"):
        opened(tmp_path, b'{"text": "x"}\n{"\0')


def test_the_fingerprint_is_of_the_content(tmp_path):
    rows = opened(tmp_path, '{"a": 1}\n')
    (tmp_path / "b.ndjson").write_bytes(b'{"a": 1}\n')
    os.utime(tmp_path / "b.ndjson", (1, 1))
    assert rows.fingerprint == JsonLines(DataFile(tmp_path / "b.ndjson", "b")).fingerprint
    assert rows.fingerprint == opened(tmp_path, gzip.compress(b'{"a": 1}\n'), "a.jsonl.gz").fingerprint
    assert rows.fingerprint != opened(tmp_path, '{"a": 2}\n', "c.jsonl").fingerprint
    assert len(rows.fingerprint) == 64


def test_rows_travel_in_pickles(tmp_path):
    rows = opened(tmp_path, "\n".join(map(spelled, ROWS)))
    assert rows[1] == ROWS[1]
    copy = pickle.loads(pickle.dumps(rows))
    assert (copy[2], list(copy), copy.fingerprint) == (ROWS[2], ROWS, rows.fingerprint)


def test_an_iteration_and_reading_by_place_do_not_disturb_each_other(tmp_path):
    rows = opened(tmp_path, "".join(f'{{"n": {number}}}\n' for number in range(1000)))
    seen = []
    for row, other in zip(rows, rows, strict=True):
        assert row == other == rows[row["n"]]
        seen.append(rows[999 - row["n"]]["n"])
    assert seen == list(range(999, -1, -1))


@pytest.mark.parametrize("packed", [False, True])
def test_memory_stays_flat(tmp_path, packed):
    path = tmp_path / ("a.jsonl.gz" if packed else "a.jsonl")
    text = "some words of a row " * 100
    with gzip.open(path, "wt", 1) if packed else path.open("w") as file:
        for number in range(15_000):
            file.write(json.dumps({"text": f"{number} {text}"}) + "\n")
    tracemalloc.start()
    rows = JsonLines(DataFile(path, "a"))
    count = sum(1 for _ in rows)
    assert rows[14_999]["text"].startswith("14999 ") and rows[7]["text"].startswith("7 ")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 15_000
    assert peak < 3e6  # of 30 MB; the places of the rows are 0.12
