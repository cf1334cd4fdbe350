"""CSV as spreadsheets and programs write it, record by record."""

import csv
import gzip
import io
import pickle
import tracemalloc

import pytest

from hasten.data.readers.csv_table import CsvRows
from hasten.data.readers.files import DataFile
from hasten.data.rows import BrokenRow
from hasten.errors import DataError

ROWS = [
    {"question": 'He said "hi", twice', "answer": "two\nlines, and\r\nmore"},
    {"question": "café\u2028", "answer": ""},
    {"question": " blanks ", "answer": "007"},
    {"question": 'in "the" middle', "answer": "\n"},
]


def opened(folder, content, name="a.csv", delimiter=""):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return CsvRows(DataFile(path, name), delimiter)


def spelled(rows, **options):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), **options)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_what_the_csv_module_writes_is_read(tmp_path, packed, mark, end, quoting, delimiter):
    text = mark + spelled(ROWS, lineterminator=end, quoting=quoting, delimiter=delimiter)
    content = gzip.compress(text.encode()) if packed else text
    rows = opened(tmp_path, content, "a.csv.gz" if packed else "a.csv")
    assert list(rows) == ROWS
    assert [rows[index] for index in (3, 0, 2, 1)] == [ROWS[index] for index in (3, 0, 2, 1)]
    assert rows.place(3) == "row 4"
    name = {",": None, ";": "';'", "\t": "a tab"}[delimiter]
    assert rows.notes == ([f"fields of {rows.name} are separated by {name}"] if name else [])


def test_a_missing_last_newline_and_blank_lines(tmp_path):
    rows = opened(tmp_path, "\r\n\na,b\n\n1,2\n\r\n   \n3,4\n\n5,6")
    assert list(rows) == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}, {"a": "5", "b": "6"}]
    assert [rows[index]["a"] for index in (2, 1, 0)] == ["5", "3", "1"]


def test_what_spreadsheets_add(tmp_path):
    rows = opened(tmp_path, '\ufeffsep=;\r\nquestion;answer;;\r\n"a\r\nb; c";d;;\r\n')
    assert [(row["question"], row["answer"]) for row in rows] == [("a\r\nb; c", "d")]
    assert rows.notes == [
        "fields of a.csv are separated by ';'",
        "columns of a.csv without a name, which are not read: 2",
    ]
    assert list(opened(tmp_path, "sep=,\na,b\n1,2\n", "b.csv")) == [{"a": "1", "b": "2"}]


def test_one_column(tmp_path):
    assert list(opened(tmp_path, "text\none, two\n".replace(", ", "; "))) == [{"text": "one; two"}]
    assert list(opened(tmp_path, 'text\n"one, two"\n \n')) == [{"text": "one, two"}, {"text": " "}]


def test_tabs_alone_divide_a_tsv(tmp_path):
    rows = opened(tmp_path, "a, b\tc;d;e;f\n1,2\t3;4\n", "a.tsv", "\t")
    assert (list(rows), rows.notes) == ([{"a, b": "1,2", "c;d;e;f": "3;4"}], [])


def test_column_names_lose_blanks_and_values_do_not(tmp_path):
    assert list(opened(tmp_path, "a, b \n 1, 2 \n")) == [{"a": " 1", "b": " 2 "}]
    assert list(opened(tmp_path, ",a\n0,x\n")) == [{"": "0", "a": "x"}]  # a data frame's index


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("1", "1 fields where the header has 2"),
        ("1,2,3", "3 fields where the header has 2"),
        ("1,2,", "3 fields where the header has 2"),
        ('"a"b,2', "not CSV (',' expected after '\"')"),
        ("1,2\r3,4", "not CSV (new-line character seen in unquoted field"),
    ],
)
def test_a_faulty_record_breaks_one_row(tmp_path, record, reason):
    rows = opened(tmp_path, f'a,b\n"1\n",2\n{record}\n5,6\n')
    for read in (list(rows), [rows[index] for index in range(3)]):
        assert (read[0], read[2]) == ({"a": "1\n", "b": "2"}, {"a": "5", "b": "6"})
        assert isinstance(read[1], BrokenRow)
        assert read[1].reason.startswith(reason)


@pytest.mark.parametrize(
    ("content", "value", "remedy"),
    [
        ("", "an empty file", "Write rows into it"),
        ("\n \n", "an empty file", "Write rows into it"),
        ("a,b\n", "column names without rows", "Write rows into it"),
        ("a,b,a\n1,2,3\n", "the column name 'a' twice", "Rename or remove one"),
        ('"a"x,b\n1,2\n', "the first record is not CSV", "Correct it"),
        ('a,b\n1,2\n3,"4\n5,6\n', "line 3: a field that does not end before the file does", "Close its quotes"),
        ("a,b\r1,2\r", "the first record is not CSV (new-line", "lines end with \\n"),
        (b"a,b\n1,caf\xe9\n", "line 2: byte 0xe9 at offset 9 is not UTF-8", "Convert the file to UTF-8"),
        (b'a,b\n"1\n\0",2\n', "line 3: a NUL byte at offset 7", "Save it as UTF-8"),
        ("a,b\n1,2\n".encode("utf-16"), "UTF-16 (byte 0xff at offset 0)", "Save it as UTF-8"),
    ],
)
def test_a_faulty_file(tmp_path, content, value, remedy):
    with pytest.raises(DataError) as caught:
        opened(tmp_path, content)
    assert caught.value.subject == "a.csv"
    assert caught.value.value.startswith(value)
    assert remedy in caught.value.remedy


def test_fields_of_megabytes_are_read_and_the_modules_limit_is_as_before(tmp_path):
    before = csv.field_size_limit()
    rows = opened(tmp_path, spelled([{"a": "x\n" * 2_500_000, "b": "1"}]))
    assert len(rows[0]["a"]) == len(next(iter(rows))["a"]) == 5_000_000
    assert csv.field_size_limit() == before


def test_a_quote_that_is_never_closed_does_not_take_the_file_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("hasten.data.readers.csv_table._LONGEST", 1000)
    before = csv.field_size_limit()
    with pytest.raises(DataError, match="line 2: a field that does not end .* in 1000 characters"):
        opened(tmp_path, 'a,b\n1,"2\n' + "3,4\n" * 1000 + '"\n')
    assert csv.field_size_limit() == before


def test_fingerprints_are_of_content_and_delimiter(tmp_path):
    rows = opened(tmp_path, "a\tb\n1\t2\n")
    assert rows.fingerprint == opened(tmp_path, "a\tb\n1\t2\n", "b.tsv", "\t").fingerprint
    assert rows.fingerprint != opened(tmp_path, "a\tb\n1\t2\n", "c.csv", ",").fingerprint
    assert rows.fingerprint != opened(tmp_path, "a\tb\n1\t3\n", "d.csv").fingerprint


def test_rows_travel_in_pickles(tmp_path):
    rows = opened(tmp_path, spelled(ROWS))
    assert rows[1] == ROWS[1]
    assert list(pickle.loads(pickle.dumps(rows))) == ROWS


def test_iterations_do_not_disturb_each_other(tmp_path):
    rows = opened(tmp_path, spelled([{"n": str(number), "m": "x"} for number in range(1000)]))
    assert all(one == other == rows[int(one["n"])] for one, other in zip(rows, rows, strict=True))


def test_memory_stays_flat(tmp_path):
    text = ("some words, of a row " * 20 + "\n") * 5
    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["n", "text"])
        writer.writerows([number, text] for number in range(15_000))
    tracemalloc.start()
    rows = CsvRows(DataFile(tmp_path / "a.csv", "a"))
    count = sum(1 for _ in rows)
    assert (rows[14_999]["n"], rows[7]["n"]) == ("14999", "7")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 15_000
    assert peak < 4e6  # of 31 MB; 256 rows are read together: 0.5 MB as bytes and as much as text
