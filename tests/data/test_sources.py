"""Reading rows: UTF-8 everywhere, and every fault named by file, line and remedy."""

import json
import os
import subprocess
import sys

import pytest

from hasten.data.sources import PYTHON_DOCS, read_rows
from hasten.errors import DataError

ROWS = [{"question": "café?", "answer": "a\u2028b"}, {"question": "two", "answer": "c\nd\x85e"}]


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def lines(rows, end="\n", ascii_only=False):
    return end.join(json.dumps(row, ensure_ascii=ascii_only) for row in rows) + end


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
    assert read_rows(PYTHON_DOCS) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "value", "remedy"),
    [
        ("a.csv", "q,a\n", "a '.csv' file", "Convert it to JSON lines."),
        ("a.jsonl", "", "an empty file", "Write rows into it, or name another."),
        ("a.jsonl", " \n\n", "an empty file", "Write rows into it, or name another."),
        ("a.jsonl", b"\xef\xbb\xbf", "an empty file", "Write rows into it, or name another."),
        ("a.json", "[]", "an empty list", "Write rows into it, or name another."),
        ("a.json", '{"text": "x"}', "a JSON dict", "Wrap it in [ ], or name it .jsonl."),
        ("a.json", '[{"text": "x"}, 5]', "row 2 is a int", "Correct it."),
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
            "a.json",
            '{"text": "x"}\n{"text": "y"}\n',
            "line 2, column 1 is not JSON (Extra data)",
            "If it has one object a line, name it .jsonl.",
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
            "line 1: byte 0xff at offset 0 is not UTF-8",
            "Convert the file to UTF-8.",
        ),
    ],
)
def test_a_faulty_file(tmp_path, name, content, value, remedy):
    source = write(tmp_path, name, content)
    with pytest.raises(DataError) as caught:
        read_rows(source)
    assert (caught.value.subject, caught.value.value, caught.value.remedy) == (source, value, remedy)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"n": ' + "9" * 5000 + "}"], ids=["brackets", "digits"])
def test_what_json_itself_gives_up_on(tmp_path, content):
    with pytest.raises(DataError, match="line 2 is not JSON.*Correct that line"):
        read_rows(write(tmp_path, "a.jsonl", '{"text": "x"}\n' + content))


def test_a_missing_file_proposes_its_neighbour(tmp_path):
    write(tmp_path, "train.jsonl", lines(ROWS))
    with pytest.raises(DataError, match=f"no such file.*Did you mean '{tmp_path / 'train.jsonl'}'"):
        read_rows(str(tmp_path / "trian.jsonl"))
    with pytest.raises(DataError, match="no such file.*Check the spelling"):
        read_rows(str(tmp_path / "nowhere" / "x.jsonl"))
    with pytest.raises(DataError, match="no such file.*Did you mean 'python-docs'"):
        read_rows("python_docs")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(DataError, match="a folder.*Name a file"):
        read_rows(str(tmp_path))
    write(tmp_path, "b.jsonl", lines(ROWS))
    with pytest.raises(DataError, match=r"a folder.*such as '.*b\.jsonl'"):
        read_rows(str(tmp_path))


def test_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    source = write(tmp_path, "a.jsonl", lines(ROWS))

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)  # root may read everything
    with pytest.raises(DataError, match="cannot be read .Permission denied.*Check its permissions"):
        read_rows(source)


def test_the_home_folder_is_understood(tmp_path, monkeypatch):
    write(tmp_path, "a.jsonl", lines(ROWS))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert read_rows("~/a.jsonl") == ROWS


# 16.4 of the pains.
def test_in_an_ascii_locale(tmp_path):
    source = write(tmp_path, "a.jsonl", lines(ROWS))
    program = f"from hasten.data.sources import read_rows; print(ascii(read_rows({source!r})))"
    environment = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ascii(ROWS)
