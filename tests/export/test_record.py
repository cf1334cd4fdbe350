"""Records that are as exports write them, and all others in one sentence."""

import json

import pytest

from hasten.errors import StorageError
from hasten.export.record import RECORD, read_record

FILE = {"path": "/x/gguf/m-F16.gguf", "bytes": 7}


def test_none_and_one(tmp_path):
    assert read_record(tmp_path) == {"targets": {}}
    said = {"source": "m", "targets": {"gguf": {"path": "/x", "contents": ["a"], "files": {"f16": FILE}}, "hf": {}}}
    (tmp_path / RECORD).write_text(json.dumps(said))
    assert read_record(tmp_path) == said
    (tmp_path / RECORD).write_text("{}")
    assert read_record(tmp_path) == {"targets": {}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{broken", "not valid JSON"),
        ("", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "not an export's record"),
        ('{"targets": []}', "not an export's record"),
        ('{"targets": {"gguf": []}}', "what it says of 'gguf' is no target's"),
        ('{"targets": {"gguf": {"contents": [1]}}}', "what it says of 'gguf' is no target's"),
        ('{"targets": {"gguf": {"contents": "x"}}}', "what it says of 'gguf' is no target's"),
        ('{"targets": {"gguf": {"files": []}}}', "what it says of 'gguf' is no target's"),
        ('{"targets": {"gguf": {"files": {"f16": {}}}}}', "what it says of 'gguf' is no target's"),
        ('{"targets": {"gguf": {"files": {"f16": {"path": "x", "bytes": "7"}}}}}', "what it says of 'gguf' is no"),
    ],
)
def test_what_is_none(tmp_path, text, value):
    (tmp_path / RECORD).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(StorageError) as caught:
        read_record(tmp_path)
    assert caught.value.subject == str(tmp_path / RECORD) and caught.value.value.startswith(value)
    assert caught.value.remedy == "Choose another folder; or move this file and the targets beside it away."


def test_a_folder_in_its_place(tmp_path):
    (tmp_path / RECORD).mkdir()
    with pytest.raises(StorageError, match="it cannot be read"):
        read_record(tmp_path)
