""".json files: lists, objects with a list, and JSON lines under the wrong name."""

import json

import pytest

from hasten.data.readers.files import DataFile
from hasten.data.readers.json_lines import JsonLines
from hasten.data.readers.json_list import read_json
from hasten.data.rows import BrokenRow
from hasten.errors import DataError

ROWS = [{"text": "café\u2028"}, {"text": "b"}]


def opened(folder, content, name="a.json"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return read_json(DataFile(path, name))


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("begin", ["", "\ufeff", "\n"])
def test_a_list_of_objects(tmp_path, indent, begin):
    rows = opened(tmp_path, begin + json.dumps(ROWS, indent=indent, ensure_ascii=False))
    assert (list(rows), rows[1], len(rows), rows.notes) == (ROWS, ROWS[1], 2, [])


@pytest.mark.parametrize("indent", [None, 1])
def test_an_object_with_one_list_of_objects(tmp_path, indent):
    rows = opened(tmp_path, json.dumps({"version": "1", "data": ROWS, "about": {"x": 1}}, indent=indent))
    assert (list(rows), rows.notes) == (ROWS, ["the rows are the list 'data' of a.json"])


@pytest.mark.parametrize("begin", ["", "\ufeff", "\n\n"])
def test_json_lines_under_the_wrong_name(tmp_path, begin):
    content = begin + "\n".join(json.dumps(row) for row in ROWS) + "\n"
    rows = opened(tmp_path, content)
    assert isinstance(rows, JsonLines)
    assert (list(rows), rows.notes) == (ROWS, ["a.json holds JSON lines"])
    with pytest.raises(DataError, match="line 3, column 7"):
        list(opened(tmp_path, "\n".join(json.dumps(row) for row in ROWS) + '\n{"a": x}'))


def test_lines_with_a_key_twice_are_lines(tmp_path):
    rows = opened(tmp_path, '{"a": 1, "a": 2}\n{"a": 1}\n')
    assert [type(row) for row in rows] == [BrokenRow, dict]


@pytest.mark.parametrize(
    ("content", "value", "remedy"),
    [
        ("", "an empty file", "Write rows into it, or name another."),
        ("[]", "an empty list", "Write rows into it, or name another."),
        ('{"data": []}', "an empty list", "Write rows into it, or name another."),
        ('{"text": "x"}', "one JSON object", "Wrap it in [ ], or name it .jsonl."),
        ('{"text": ["x"], "label": [1]}', "one JSON object", "Wrap it in [ ], or name it .jsonl."),
        ('{"text": ["x"]}', "one JSON object", "Wrap it in [ ], or name it .jsonl."),
        ('{"train": [{"a": 1}], "test": [{"a": 1}]}', "one JSON object", "Wrap it in [ ], or name it .jsonl."),
        ('{"messages": [{"role": "user"}]}', "one JSON object", "Wrap it in [ ], or name it .jsonl."),
        ("5", "a number", "Wrap it in [ ], or name it .jsonl."),
        ('[{"text": "x"}, 5]', "row 2 is a number", "Correct it."),
        ('{"data": [], "data": []}', "duplicate key 'data'", "Correct it."),
        ('[{"a": 1},\n{"a" 1}]', "line 2, column 6 is not JSON (Expecting ':' delimiter)", "Correct that line."),
        (
            '{\n"text": "x"}\n{"text": "y"}\n',
            "line 3, column 1 is not JSON (Extra data)",
            "If it has one object a line, name it .jsonl.",
        ),
    ],
)
def test_what_holds_no_rows(tmp_path, content, value, remedy):
    with pytest.raises(DataError) as caught:
        opened(tmp_path, content)
    assert (caught.value.subject, caught.value.value, caught.value.remedy) == ("a.json", value, remedy)


def test_a_key_that_comes_twice_breaks_one_row(tmp_path):
    rows = opened(tmp_path, '[{"a": 1}, {"a": [{"b": 1, "b": 2}]}, {"a": 1}]')
    assert [type(row) for row in rows] == [dict, BrokenRow, dict]
    broken = rows[1]
    assert isinstance(broken, BrokenRow) and broken.reason == "duplicate key 'b'"


def test_fingerprints_are_of_the_content_and_its_kind(tmp_path):
    content = json.dumps(ROWS)
    prints = {
        opened(tmp_path, content).fingerprint,
        opened(tmp_path, content + "\n", "b.json").fingerprint,
        opened(tmp_path, '{"a": 1}\n{"a": 1}\n', "c.json").fingerprint,
    }
    assert len(prints) == 3
    assert opened(tmp_path, content, "d.json").fingerprint in prints
    (tmp_path / "c.jsonl").write_text('{"a": 1}\n{"a": 1}\n', encoding="utf-8", newline="\n")
    assert JsonLines(DataFile(tmp_path / "c.jsonl", "c")).fingerprint in prints
