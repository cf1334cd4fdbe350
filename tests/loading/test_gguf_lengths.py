"""Lengths that a file cannot have are found before anybody makes values of them."""

import struct

import pytest

from hasten.errors import ModelError
from hasten.loading import gguf_lengths
from hasten.loading.gguf_file import open_gguf
from support import gguf_models

HEAD = b"GGUF" + struct.pack("<I", 3)


def text(value):
    return struct.pack("<Q", len(value)) + value


def listed(kind, count, content=b""):
    return struct.pack("<IIQ", 9, kind, count) + content


def file(*fields, count=None):
    body = b"".join(text(name) + value for name, value in fields)
    return HEAD + struct.pack("<QQ", 0, len(fields) if count is None else count) + body


WHOLE = file(
    (b"a", struct.pack("<II", 4, 7)),
    (b"b", struct.pack("<I", 8) + text(b"x\xff")),
    (b"c", listed(6, 2, bytes(8))),
    (b"d", listed(8, 2, text(b"x") + text(b""))),
    (b"e", listed(12, 0)),
)


def said(tmp_path, content):
    (tmp_path / "x.gguf").write_bytes(content)
    return gguf_lengths.fault(tmp_path / "x.gguf")


def test_what_fits(tmp_path):
    assert said(tmp_path, WHOLE) is None
    gguf_models.write_model(tmp_path / "y.gguf", gguf_models.model("llama"))
    assert gguf_lengths.fault(tmp_path / "y.gguf") is None


@pytest.mark.parametrize("end", range(8, len(WHOLE) - 1, 7))
def test_a_file_that_ends_anywhere(tmp_path, end):
    assert said(tmp_path, WHOLE[:end]) is not None


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (file((b"n", listed(0, 2**60))), "'n' has a list of impossible length"),
        (file((b"n", listed(8, 2**60))), "'n' has a list of impossible length"),
        (file((b"n", listed(6, 1000, bytes(8)))), "'n' has a list of impossible length"),
        (file((b"n", listed(9, 1, listed(0, 1, b"x")))), "'n' has a list of impossible length or kind"),
        (file((b"n\xff", struct.pack("<I", 99))), "impossible length or kind"),
        (file((b"n", struct.pack("<IQ", 8, 2**63))), "ends within its metadata"),
        (file(count=2**60), "ends within its metadata"),
        (file((b"n", listed(8, 1000, bytes(8000))), count=3), "ends within its metadata"),
    ],
)
def test_what_does_not(tmp_path, content, fault):
    assert fault in (said(tmp_path, content) or "")
    with pytest.raises(ModelError, match="a damaged GGUF") as caught:
        open_gguf(tmp_path / "x.gguf")
    assert fault in caught.value.value


@pytest.mark.parametrize(
    ("fields", "value"),
    [
        ([(b"general.architecture", struct.pack("<I", 8) + text(b"\xff\xfe"))], "a damaged GGUF (field 'general.arch"),
        ([(b"\xff\xfe", struct.pack("<II", 4, 1))], "a damaged GGUF ("),
        ([(b"general.architecture", listed(4, 1, bytes(4)))], "general.architecture = [0]"),
        ([(b"general.type", listed(8, 1, text(b"model")))], "general.type = ['model']"),
        ([(b"split.count", struct.pack("<I", 8) + text(b"two"))], "split.count = 'two'"),
        ([(b"a", struct.pack("<II", 4, 1)), (b"a", struct.pack("<II", 4, 1))], ""),
    ],
)
def test_bytes_that_are_no_text_and_values_of_other_types(tmp_path, fields, value):
    (tmp_path / "x.gguf").write_bytes(file(*fields))
    with pytest.raises(ModelError) as caught:
        open_gguf(tmp_path / "x.gguf")
    assert caught.value.value.startswith(value)
