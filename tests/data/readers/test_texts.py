"""Texts: a file is a row."""

import pickle

import pytest

from hasten.data.readers.files import DataFile
from hasten.data.readers.texts import TextFiles
from hasten.errors import DataError


def made(folder, *contents):
    files = []
    for number, content in enumerate(contents):
        path = folder / f"{number}.txt"
        path.write_bytes(content)
        files.append(DataFile(path, path.name))
    return files


def test_one_file_is_one_row(tmp_path):
    rows = TextFiles(made(tmp_path, "\ufeffcafé\r\nb\u2028c\r".encode()), "mine")
    assert (list(rows), len(rows)) == ([{"text": "café\nb\u2028c\r"}], 1)
    assert (rows.place(0), rows.name) == ("row 1", "mine")


def test_of_several_files_the_place_names_the_file(tmp_path):
    rows = TextFiles(made(tmp_path, b"a", b"b", b""), "folder")
    assert [row["text"] for row in rows] == ["a", "b", ""]
    assert (rows[1], rows.place(1)) == ({"text": "b"}, "row 2 (1.txt)")


@pytest.mark.parametrize("content", [b"", b" \n", b"\xef\xbb\xbf"])
def test_one_empty_file_is_refused(tmp_path, content):
    with pytest.raises(DataError, match="mine: an empty file.*Write rows into it"):
        TextFiles(made(tmp_path, content), "mine")


def test_a_text_in_another_encoding_is_named(tmp_path):
    rows = TextFiles(made(tmp_path, b"a", b"x\ncaf\xe9"), "folder")
    with pytest.raises(DataError, match="1.txt: line 2: byte 0xe9 at offset 5 is not UTF-8"):
        list(rows)


def test_the_fingerprint_is_of_contents_in_their_order(tmp_path):
    prints = [
        TextFiles(made(tmp_path, *contents), "x").fingerprint for contents in ([b"a", b"b"], [b"b", b"a"], [b"ab"])
    ]
    assert len(set(prints)) == 3
    (tmp_path / "other").mkdir()
    assert TextFiles(made(tmp_path / "other", b"a", b"b"), "y").fingerprint == prints[0]


def test_rows_travel_in_pickles(tmp_path):
    assert pickle.loads(pickle.dumps(TextFiles(made(tmp_path, b"a", b"b"), "x")))[1] == {"text": "b"}
