"""Parquet by row groups and by place, with what is not Parquet refused."""

import datetime
import os
import pickle
import random
import tracemalloc

import pyarrow as pa
import pytest
from pyarrow import parquet

from hasten.data.prepare import split
from hasten.data.readers.files import DataFile
from hasten.data.readers.parquet import ParquetRows
from hasten.data.rows import BrokenRow
from hasten.data.settings import DataSettings
from hasten.errors import DataError

ROWS = [
    {
        "messages": [{"role": "user", "content": f"café {number}"}, {"role": "assistant", "content": None}],
        "when": datetime.datetime(2024, 2, 29, 1, 2, number % 60),
        "label": number % 2 == 0,
        "weight": None if number % 3 else number / 2,
    }
    for number in range(2000)
]


def opened(folder, table, name="a.parquet", **options):
    path = folder / name
    if isinstance(table, bytes):
        path.write_bytes(table)
    else:
        parquet.write_table(table if isinstance(table, pa.Table) else pa.Table.from_pylist(table), path, **options)
    return ParquetRows(DataFile(path, name))


@pytest.mark.parametrize("group", [7, 600, 10_000])
def test_rows_in_any_order(tmp_path, group):
    rows = opened(tmp_path, ROWS, row_group_size=group)
    assert list(rows) == ROWS
    order = random.Random(0).sample(range(2000), 300)
    assert [rows[index] for index in order] == [ROWS[index] for index in order]
    assert (len(rows), rows.place(6), rows[-1]) == (2000, "row 7", ROWS[-1])


def test_training_and_held_out_rows_need_no_temporary_file(tmp_path, monkeypatch):
    rows = opened(tmp_path, ROWS, row_group_size=600)
    monkeypatch.setattr("hasten.data.readers.parquet.Spool", lambda rows: pytest.fail("all rows were written down"))
    training, heldout = split(rows, DataSettings(heldout=5))
    assert len(list(training)) == 1995 and len(list(heldout)) == 5
    assert sorted([*training, *heldout], key=str) == sorted(ROWS, key=str)


def test_categories_are_text(tmp_path):
    table = pa.table({"text": pa.array(["a", "b", "a"]).dictionary_encode()})
    rows = opened(tmp_path, table, row_group_size=2)
    assert [*rows] == [rows[index] for index in range(3)] == [{"text": "a"}, {"text": "b"}, {"text": "a"}]


@pytest.mark.parametrize("damage", [lambda data: b"PAR1 no", lambda data: b"", lambda data: data[: len(data) // 2]])
def test_what_is_no_parquet(tmp_path, damage):
    opened(tmp_path, ROWS)
    with pytest.raises(DataError, match="b.parquet: it is (not Parquet|damaged).*Write it again"):
        opened(tmp_path, damage((tmp_path / "a.parquet").read_bytes()), "b.parquet")


def test_damage_inside_is_found_when_it_is_read(tmp_path):
    opened(tmp_path, [{"text": random.Random(0).randbytes(4000).hex()}])
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[4:60] = b"\xff" * 56
    rows = opened(tmp_path, bytes(data), "b.parquet")
    for read in (lambda: list(rows), lambda: rows[0]):
        with pytest.raises(DataError, match="b.parquet: it is (not Parquet|damaged).*Write it again"):
            read()


def test_a_table_without_rows(tmp_path):
    with pytest.raises(DataError, match="a.parquet: no rows.*Write rows into it"):
        opened(tmp_path, pa.table({"text": pa.array([], pa.string())}))


def test_a_column_name_twice(tmp_path):
    with pytest.raises(DataError, match="the column name 'text' twice.*Rename or remove one"):
        opened(tmp_path, pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]))


def test_text_that_is_not_utf_8_breaks_its_row(tmp_path):
    column = pa.array([b"a", b"caf\xe9", b"c"]).view(pa.string())
    rows = opened(tmp_path, pa.table({"text": column}))
    assert [type(row) for row in rows] == [dict, BrokenRow, dict]
    broken = rows[1]
    assert isinstance(broken, BrokenRow) and broken.reason == "text that is not UTF-8"
    assert (rows[0], rows[2]) == ({"text": "a"}, {"text": "c"})


def test_the_fingerprint_is_of_the_file(tmp_path):
    rows = opened(tmp_path, ROWS)
    same = opened(tmp_path, (tmp_path / "a.parquet").read_bytes(), "b.parquet")
    assert rows.fingerprint == same.fingerprint
    assert rows.fingerprint != opened(tmp_path, ROWS[1:], "c.parquet").fingerprint


def test_rows_travel_in_pickles(tmp_path):
    rows = opened(tmp_path, ROWS)
    assert rows[5] == ROWS[5]
    assert pickle.loads(pickle.dumps(rows))[1999] == ROWS[1999]


def test_a_file_that_was_changed_is_refused(tmp_path):
    rows = opened(tmp_path, ROWS)
    os.utime(tmp_path / "a.parquet", (1, 1))
    with pytest.raises(DataError, match="it was changed while it was in use"):
        list(rows)


@pytest.mark.parametrize("compression", ["none", "snappy"])
def test_memory_stays_flat(tmp_path, compression):
    noise = random.Random(0)
    table = pa.table({"text": [noise.randbytes(1000).hex() for _ in range(15_000)]})
    parquet.write_table(table, tmp_path / "a.parquet", compression=compression, use_dictionary=False)
    del table
    before, arrow_peak = pa.total_allocated_bytes(), 0
    tracemalloc.start()
    rows = ParquetRows(DataFile(tmp_path / "a.parquet", "a"))
    for _ in rows:
        arrow_peak = max(arrow_peak, pa.total_allocated_bytes() - before)
    assert len(rows[14_999]["text"]) == 2000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Of 30 MB in one row group: 512 rows as Python's and as Arrow's, and a page or two of the column.
    assert peak < 5e6
    assert arrow_peak < 10e6
