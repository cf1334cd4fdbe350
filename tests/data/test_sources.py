"""Where rows come from: what is here comes first, several names are mixed, and every fault is named with a remedy."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from hasten.data.rows import BrokenRow, ListRows, Mixture
from hasten.data.settings import DataSettings
from hasten.data.sources import PYTHON_DOCS, open_rows
from hasten.errors import ConfigError, DataError

ROWS = [{"question": "café?", "answer": "a\u2028b"}, {"question": "two", "answer": "c\nd\x85e"}]
SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def write(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def lines(rows, end="\n", ascii_only=False):
    return end.join(json.dumps(row, ensure_ascii=ascii_only) for row in rows) + end


def opened(*sources, **settings):
    return open_rows(DataSettings(source=sources[0] if len(sources) == 1 else list(sources), **settings))


def read_rows(source):
    return list(opened(source))


@pytest.fixture
def no_requests(monkeypatch):
    """Any connection fails the test."""

    def refuse(self, address):
        raise AssertionError(f"a connection to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(datasets, "load_dataset", refuse)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", "\n \n"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_json_lines_as_every_system_writes_them(tmp_path, end, bom, ascii_only):
    content = bom + lines(ROWS, end, ascii_only).encode()
    assert read_rows(write(tmp_path, "ö ä.jsonl", content)) == ROWS


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_a_json_list(tmp_path, bom):
    content = bom + json.dumps(ROWS, indent=1, ensure_ascii=False).encode()
    assert read_rows(write(tmp_path, "a.JSON", content)) == ROWS


def test_a_missing_last_newline_and_a_lone_surrogate(tmp_path):
    assert read_rows(write(tmp_path, "a.jsonl", '{"text": "\\ud800"}')) == [{"text": "\ud800"}]


def test_the_standard_librarys_docs(monkeypatch):
    monkeypatch.setattr("hasten.data.sources.question_rows", lambda: ROWS)
    rows = opened(PYTHON_DOCS)
    assert (list(rows), rows.name) == (ROWS, "python-docs")
    assert read_rows(PYTHON_DOCS) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "value", "remedy"),
    [
        ("a.xlsx", "PK", "a '.xlsx' file", "Convert it to JSON lines, or name it by what is in it."),
        ("a.jsonl", "", "an empty file", "Write rows into it, or name another."),
        ("a.jsonl", " \n\n", "an empty file", "Write rows into it, or name another."),
        ("a.jsonl", b"\xef\xbb\xbf", "an empty file", "Write rows into it, or name another."),
        ("a.json", "[]", "an empty list", "Write rows into it, or name another."),
        ("a.json", '{"text": "x"}', "one JSON object", "Wrap it in [ ], or name it .jsonl."),
        ("a.json", '[{"text": "x"}, 5]', "row 2 is a number", "Correct it."),
        ("a.jsonl", '{"text": "x"}\nnull\n', "line 2 is null", "Correct it."),
        (
            "a.jsonl",
            '{"text": "x"}\n\n{"text": y}\n',
            "line 3, column 10 is not JSON (Expecting value)",
            "Correct that line.",
        ),
        (
            "a.json",
            '[{"text": "x"},\n{"text" "y"}]',
            "line 2, column 9 is not JSON (Expecting ':' delimiter)",
            "Correct that line.",
        ),
        (
            "a.jsonl",
            b'{"text": "x"}\r{"text": "y"}',
            "line 1, column 15 is not JSON (Extra data)",
            "Correct that line.",
        ),
        (
            "a.jsonl",
            '{"text": "x"}\n{"text": "caf\xe9"}\n'.encode("latin-1"),
            "line 2: byte 0xe9 at offset 27 is not UTF-8",
            "Convert the file to UTF-8.",
        ),
        (
            "a.jsonl",
            b"\xef\xbb\xbf" + '{"text": "caf\xe9"}'.encode("latin-1"),
            "line 1: byte 0xe9 at offset 16 is not UTF-8",
            "Convert the file to UTF-8.",
        ),
        (
            "a.jsonl",
            '{"text": "x"}'.encode("utf-16"),
            "UTF-16 (byte 0xff at offset 0)",
            "Save it as UTF-8.",
        ),
        ("a.csv", "a,b\n", "column names without rows", "Write rows into it, or name another."),
    ],
)
def test_a_faulty_file(tmp_path, name, content, value, remedy):
    source = write(tmp_path, name, content)
    with pytest.raises(DataError) as caught:
        read_rows(source)
    assert (caught.value.subject, caught.value.value, caught.value.remedy) == (source, value, remedy)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"n": ' + "9" * 5000 + "}"], ids=["brackets", "digits"])
def test_what_json_itself_gives_up_on(tmp_path, content):
    with pytest.raises(DataError, match="line 2 is not JSON"):
        read_rows(write(tmp_path, "a.jsonl", '{"text": "x"}\n' + content))


def test_a_missing_file_proposes_its_neighbour(tmp_path, no_requests):
    write(tmp_path, "train.jsonl", lines(ROWS))
    with pytest.raises(DataError, match=f"no such file.*Did you mean '{tmp_path / 'train.jsonl'}'"):
        read_rows(str(tmp_path / "trian.jsonl"))
    with pytest.raises(DataError, match="no such file.*Check the spelling"):
        read_rows(str(tmp_path / "nowhere" / "x.jsonl"))


def test_a_misspelt_name_of_ours_is_not_asked_for_elsewhere(tmp_path, monkeypatch, no_requests):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no such file.*Did you mean 'python-docs'"):
        read_rows("python_docs")


def test_a_misspelt_data_file_is_not_asked_for_elsewhere(tmp_path, monkeypatch, no_requests):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "data/train.jsonl", lines(ROWS))
    with pytest.raises(DataError, match=f"no such file.*Did you mean '{Path('data', 'train.jsonl')}'"):
        read_rows("data/tarin.jsonl")


def test_a_web_address_is_no_file(no_requests):
    with pytest.raises(DataError, match="no such file.*Download it, and name the file"):
        read_rows("https://example.org/train.jsonl")


# 21.2 of the pains.
@pytest.mark.parametrize("name", ["org/name", "name", "csv"])
def test_what_is_here_wins_over_the_hub_and_asks_for_nothing(tmp_path, monkeypatch, no_requests, name):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, f"{name}/a.jsonl", lines(ROWS))
    rows = opened(name)
    assert (list(rows), rows.notes) == (ROWS, [f"{name} is a folder: a.jsonl"])


def test_what_is_not_here_is_asked_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []

    def load_dataset(*arguments, **options):
        asked.append(arguments)
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(opened("org/name", subset="x", split="test")) == ROWS
    assert asked == [("org/name", "x")]


def test_offline_the_remedy_for_a_misspelt_folder_is_its_neighbour(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "data/texts/a.txt", "x")
    with pytest.raises(DataError, match=f"the hub cannot be asked.*Did you mean '{Path('data', 'texts')}'"):
        read_rows("data/text")


def test_folders_and_saved_data_sets(tmp_path):
    write(tmp_path, "texts/a.txt", "one")
    assert read_rows(str(tmp_path / "texts")) == [{"text": "one"}]
    datasets.DatasetDict({"dev": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "saved")
    assert list(opened(str(tmp_path / "saved"), split="dev")) == ROWS


def test_a_folder_without_data(tmp_path):
    with pytest.raises(DataError, match="a folder without data.*Put such files into it"):
        read_rows(str(tmp_path))


def test_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    source = write(tmp_path, "a.jsonl", lines(ROWS))

    def refuse(self, *arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)  # root may read everything
    with pytest.raises(DataError, match="cannot be read .Permission denied.*Check its permissions"):
        read_rows(source)


@pytest.mark.parametrize("name", ["x" * 5000, "~no-such-user-here/a.jsonl"])
def test_names_that_no_file_can_have(name):
    with pytest.raises(DataError, match="it cannot be read .*Check its spelling and permissions"):
        read_rows(name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="no ordinary file.*Write what it gives into a file"):
        read_rows(str(tmp_path / "a.jsonl"))


def test_the_home_folder_is_understood(tmp_path, monkeypatch):
    write(tmp_path, "a.jsonl", lines(ROWS))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert read_rows("~/a.jsonl") == ROWS


def test_several_sources_follow_one_another(tmp_path):
    first, second = write(tmp_path, "a.jsonl", lines(ROWS)), write(tmp_path, "b.csv", "question,answer\nq,a\n")
    rows = opened(first, second)
    assert isinstance(rows, Mixture)
    assert list(rows) == [*ROWS, {"question": "q", "answer": "a"}]
    assert (rows.place(1), rows.place(2)) == (f"{first} row 2", f"{second} row 1")
    assert not isinstance(opened(first), Mixture)


def test_several_sources_with_weights(tmp_path):
    first = write(tmp_path, "a.jsonl", lines([{"n": number} for number in range(100)]))
    second = write(tmp_path, "b.jsonl", lines([{"n": -number} for number in range(1, 11)]))
    rows = opened(first, second, weights=[0.75, 0.25])
    assert sum(row["n"] >= 0 for row in rows) == 30
    assert rows.notes == [f"mixed: 30 of 100 rows of {first}, 10 of 10 rows of {second}"]
    assert list(rows) == list(opened(first, second, weights=[3, 1]))
    assert list(rows) != list(opened(first, second, weights=[3, 1], seed=1))


@pytest.mark.parametrize(
    ("settings", "subject", "value", "remedy"),
    [
        ({"source": []}, "data.source", "[]", "Name one."),
        ({"source": ""}, "data.source", "['']", "Name one."),
        ({"source": ["a.jsonl", " "]}, "data.source", "['a.jsonl', ' ']", "Name one."),
        ({"weights": [1, 2]}, "data.weights", "2 for 1 sources", "Give as many as there are in data.source."),
        ({"weights": [0]}, "data.weights", "[0]", "Leave the source out of data.source instead."),
        ({"weights": [float("inf")]}, "data.weights", "[inf]", "Leave the source out of data.source instead."),
        ({"subset": "main"}, "data.subset", "'main' for python-docs", "Leave it out."),
        ({"split": "test"}, "data.split", "'test' for python-docs", "Leave it out."),
    ],
)
def test_settings_that_do_not_fit_the_sources(settings, subject, value, remedy, no_requests):
    with pytest.raises(ConfigError) as caught:
        open_rows(DataSettings(**settings))
    assert (caught.value.subject, caught.value.value, caught.value.remedy) == (subject, value, remedy)


def test_a_subset_of_a_file_is_refused(tmp_path):
    source = write(tmp_path, "a.jsonl", lines(ROWS))
    with pytest.raises(ConfigError, match="data.subset: 'main' for .*a.jsonl. Only data sets of the hub"):
        opened(source, subset="main")


def test_rows_of_a_program_come_instead_of_the_source():
    rows = open_rows(DataSettings(source="nowhere.jsonl"), ROWS)
    assert isinstance(rows, ListRows)
    assert list(rows) == ROWS
    with pytest.raises(DataError, match="rows: no rows"):
        open_rows(DataSettings(), [])


def test_a_row_with_a_key_twice_keeps_its_number(tmp_path):
    rows = opened(write(tmp_path, "a.jsonl", '{"text": "a"}\n\n{"text": "b", "text": "c"}\n{"text": "d"}\n'))
    broken = rows[1]
    assert isinstance(broken, BrokenRow) and broken.reason == "duplicate key 'text'"
    assert [row.get("text") for row in rows] == ["a", None, "d"]
    assert rows.place(2) == "row 3"


# 16.4 of the pains.
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "txt", "parquet", "folder"])
def test_in_an_ascii_locale(tmp_path, kind):
    expected = ROWS
    if kind == "jsonl":
        source = write(tmp_path, "ä.jsonl", lines(ROWS))
    elif kind == "json":
        source = write(tmp_path, "ä.json", json.dumps(ROWS, ensure_ascii=False))
    elif kind == "csv":
        source = write(tmp_path, "ä.csv", 'question,answer\ncafé?,a\u2028b\ntwo,"c\nd\x85e"\n')
    elif kind == "parquet":
        source = str(tmp_path / "ä.parquet")
        datasets.Dataset.from_list(ROWS).to_parquet(source)
    else:
        expected = [{"text": "café"}]
        source = write(tmp_path, "ä/ö.txt", "café")
        source = str(tmp_path / "ä") if kind == "folder" else source
    program = (
        "import sys; from hasten.data.sources import open_rows; from hasten.data.settings import DataSettings;"
        "rows = open_rows(DataSettings(source=sys.argv[1]));"
        "print(ascii([rows[index] for index in range(len(rows))]), ascii(list(rows)), rows.fingerprint)"
    )
    environment = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    done = subprocess.run(
        [sys.executable, "-c", program, source], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"{ascii(expected)} {ascii(expected)} {opened(source).fingerprint}"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the example data sets are not beside the project")
@pytest.mark.parametrize(
    ("name", "count", "columns"),
    [
        ("alpaca_en_demo.json", 999, ["instruction", "input", "output"]),
        ("c4_demo.jsonl", 300, ["text"]),
        ("dpo_en_demo.json", 300, ["conversations", "chosen", "rejected"]),
        ("glaive_toolcall_en_demo.json", 300, ["conversations", "tools"]),
        ("kto_en_demo.json", 300, ["messages", "label"]),
    ],
)
def test_real_files(name, count, columns):
    rows = opened(str(SHARED / name))
    assert len(rows) == count == sum(1 for _ in rows)
    assert all(list(row) == columns for row in rows)
    assert rows[count - 1] == list(rows)[-1]
    assert len(rows.fingerprint) == 64
