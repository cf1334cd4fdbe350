"""Lines and their places: UTF-8 with or without its mark, and every other encoding refused by name."""

import pytest

from hasten.data.readers.files import DataFile
from hasten.data.readers.text_lines import decoded, empty, lines, whole_text
from hasten.errors import DataError


def made(folder, content):
    path = folder / "a.txt"
    path.write_bytes(content)
    return DataFile(path, "mine")


def test_lines_end_at_line_feeds_alone(tmp_path):
    content = "a\u2028b\x85\x0b\x0c\r\n\nc\r".encode()
    assert list(lines(made(tmp_path, content))) == [
        (1, 0, "a\u2028b\x85\x0b\x0c\r\n".encode()),
        (2, 11, b"\n"),
        (3, 12, b"c\r"),
    ]


def test_the_mark_is_no_text_but_counts_in_offsets(tmp_path):
    assert list(lines(made(tmp_path, b"\xef\xbb\xbfa\nb"))) == [(1, 3, b"a\n"), (2, 5, b"b")]
    assert list(lines(made(tmp_path, b"\xef\xbb\xbf"))) == [(1, 3, b"")]
    assert whole_text(made(tmp_path, b"\xef\xbb\xbfa\n\xef\xbb\xbfb")) == "a\n\ufeffb"
    assert list(lines(made(tmp_path, b""))) == []


@pytest.mark.parametrize(
    ("encoding", "name", "byte"),
    [
        ("utf-16", "UTF-16", "0xff"),
        ("utf-16-be", "UTF-16", "0xfe"),
        ("utf-32", "UTF-32", "0xff"),
        ("utf-32-be", "UTF-32", "0x00"),
    ],
)
def test_other_marks_are_refused_by_name(tmp_path, encoding, name, byte):
    content = ("" if encoding in ("utf-16", "utf-32") else "\ufeff") + "text\n"
    file = made(tmp_path, content.encode(encoding))
    for read in (lambda: list(lines(file)), lambda: whole_text(file)):
        with pytest.raises(DataError) as caught:
            read()
        assert caught.value.value == f"{name} (byte {byte} at offset 0)"
        assert caught.value.remedy == "Save it as UTF-8."


def test_a_nul_byte_is_refused_with_its_place(tmp_path):
    with pytest.raises(DataError, match="mine: line 2: a NUL byte at offset 5.*UTF-16.*Save it as UTF-8"):
        whole_text(made(tmp_path, b"abc\nd\0e"))
    with pytest.raises(DataError, match="line 9: a NUL byte at offset 101"):
        decoded("mine", b"d\0e", 100, 9)


def test_a_byte_that_is_not_utf_8_is_refused_with_its_place(tmp_path):
    content = "\ufeffabc\nd\né".encode() + b"\n caf\xe9"
    with pytest.raises(DataError, match="mine: line 4: byte 0xe9 at offset 16 is not UTF-8.*Convert the file"):
        whole_text(made(tmp_path, content))
    with pytest.raises(DataError, match="line 9: byte 0x80 at offset 101 is not"):
        decoded("mine", b"d\x80e", 100, 9)


def test_raw_surrogates_are_not_utf_8(tmp_path):
    with pytest.raises(DataError, match="line 1: byte 0xed at offset 1 is not UTF-8"):
        whole_text(made(tmp_path, b"a\xed\xa0\x80"))


def test_the_error_about_nothing():
    assert str(empty("mine")).startswith("mine: an empty file. It must hold at least one row.")
    assert "Write rows into it" in empty("mine", "an empty list").remedy
