"""JSON as rows: objects, no key twice, and faults named by line and column."""

import json
import math

import pytest

from hasten.data.readers.json_text import as_row, kind_of, parsed_row, parsed_value
from hasten.data.rows import BrokenRow
from hasten.errors import DataError


def row(text, line=7):
    return parsed_row("mine", text, lambda: line)


def test_an_object_is_a_row():
    assert row(' {"a": [1, {"b": null}], "c": "\\ud800"} \r\n') == {"a": [1, {"b": None}], "c": "\ud800"}


def test_numbers_that_json_has_not_are_read_as_ever():
    assert math.isnan(row('{"a": NaN}')["a"])
    assert parsed_value("mine", "[Infinity]") == [math.inf]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('{"text": "a", "text": "b"}', "text"),
        ('{"text": "a", "meta": [{"x": 1, "y": 2, "x": 1}]}', "x"),
        ('{"a": {"b": {"": 1, "": 1}}}', ""),
        ('{"\\u0061": 1, "a": 1}', "a"),
    ],
)
def test_a_key_that_comes_twice_breaks_its_row(text, key):
    for broken in (row(text), parsed_value("mine", f'[{{"a": 1}}, {text}]')[1]):
        assert isinstance(broken, BrokenRow)
        assert broken.reason == f"duplicate key '{key}'"


def test_other_rows_of_a_list_are_whole():
    value = parsed_value("mine", '[{"a": {"b": 1}}, {"a": {"b": 1, "b": 2}}, {"a": []}]')
    assert [type(item) for item in value] == [dict, BrokenRow, dict]
    assert (value[0], value[2]) == ({"a": {"b": 1}}, {"a": []})
    nested = parsed_value("mine", '{"data": [{"a": [{"b": 1, "b": 2}]}, {"a": 1}]}')["data"]
    assert [type(item) for item in nested] == [BrokenRow, dict]


def test_the_same_key_in_several_objects_is_no_fault():
    assert row('{"a": {"a": 1}, "b": [{"a": 1}, {"a": 1}]}') == {"a": {"a": 1}, "b": [{"a": 1}, {"a": 1}]}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": b}', "line 7, column 7 is not JSON (Expecting value)"),
        ('  {"a" 1}', "line 7, column 8 is not JSON (Expecting ':' delimiter)"),
        ('{"a": "x\ty"}', "line 7, column 9 is not JSON (Invalid control character at)"),
        ("{'a': 1}", "line 7, column 2 is not JSON (Expecting property name enclosed in double quotes)"),
    ],
)
def test_a_line_that_is_no_json(text, value):
    with pytest.raises(DataError) as caught:
        row(text)
    assert (caught.value.subject, caught.value.value) == ("mine", value)
    assert caught.value.remedy == "Correct that line."


def test_a_line_that_begins_a_list_has_a_remedy_of_its_own():
    with pytest.raises(DataError, match="line 1, column 2 is not JSON.*name it .json"):
        row("[", 1)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("null", "null"),
        ("true", "a truth value"),
        ("5", "a number"),
        ("0.5", "a number"),
        ('"x"', "text"),
        ("[]", "a list"),
    ],
)
def test_a_line_that_is_no_object(text, kind):
    with pytest.raises(DataError, match=f"mine: line 7 is {kind}. Every row is a JSON object. Correct it"):
        row(text)
    assert kind_of(json.loads(text)) == kind


@pytest.mark.parametrize("text", ["[" * 100_000, '{"n": ' + "9" * 5000 + "}"], ids=["brackets", "digits"])
def test_what_json_itself_gives_up_on(text):
    with pytest.raises(DataError, match="line 7 is not JSON"):
        row(text)
    with pytest.raises(DataError, match="line 1 is not JSON.*Correct that line"):
        parsed_value("mine", text)


def test_a_value_in_a_list_is_named_by_its_row():
    assert as_row("mine", "row 2", {"a": 1}) == {"a": 1}
    with pytest.raises(DataError, match="mine: row 2 is text. Every row is a JSON object"):
        as_row("mine", "row 2", "x")


def test_lines_and_columns_of_a_whole_file():
    with pytest.raises(DataError, match="line 2, column 9 is not JSON .Expecting ':' delimiter"):
        parsed_value("mine", '[{"text": "x"},\n{"text" "y"}]')
    with pytest.raises(DataError, match="line 3, column 1 is not JSON .Extra data.*name it .jsonl"):
        parsed_value("mine", '{"text":\n "x"}\n{"text": "y"}')
