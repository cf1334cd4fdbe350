"""Tool calls and schemas: every shape is read into one, Arrow's filling is taken out, both can be written as text."""

import datetime
import json

import pytest

from hasten.data.conversation import Conversation, RowProblem
from hasten.data.tools import calls_as_text, cleaned, read_calls, read_tools, tools_as_text, without_tool_support

SCHEMA = {"name": "weather", "description": "today's", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": SCHEMA}
USER = {"role": "user", "content": "q"}


def call(name, **arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


OSLO = call("weather", city="Oslo")


@pytest.mark.parametrize(
    "given",
    [
        [OSLO],
        OSLO,
        [{"function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}],
        [{"name": "weather", "arguments": {"city": "Oslo"}}],
        {"name": "weather", "arguments": '{"city": "Oslo"}'},
        '{"name": "weather", "arguments": {"city": "Oslo"}}',
        '[{"type": "function", "function": {"name": "weather", "arguments": "{\\"city\\": \\"Oslo\\"}"}}]',
        [{"id": None, "type": None, "function": None, "name": "weather", "arguments": {"city": "Oslo", "n": None}}],
    ],
)
def test_every_shape_of_a_call_is_one_shape(given):
    assert read_calls(given) == [OSLO]


def test_an_id_is_kept():
    assert read_calls([{"id": "c1", **OSLO}]) == [{"id": "c1", **OSLO}]


@pytest.mark.parametrize("given", [None, [], "", " ", "[]"])
def test_no_calls(given):
    assert read_calls(given) == []


@pytest.mark.parametrize("arguments", [None, {}, "", "{}", {"n": None}])
def test_a_call_without_arguments(arguments):
    assert read_calls([{"name": "now", "arguments": arguments}]) == [call("now")]
    assert read_calls([{"name": "now"}]) == [call("now")]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("{not json", "a tool call that is not JSON"),
        ("[" * 100_000, "a tool call that is not JSON"),
        (5, "tool calls that are no list"),
        ("5", "tool calls that are no list"),
        (["f"], "a tool call that is no object"),
        ([{"arguments": {}}], "a tool call without a name"),
        ([{"name": "", "arguments": {}}], "a tool call without a name"),
        ([{"name": 3, "arguments": {}}], "a tool call without a name"),
        ([{"function": "f", "arguments": {}}], "a tool call without a name"),
        ([{"name": "f", "arguments": "Oslo"}], "tool call arguments that are no JSON object"),
        ([{"name": "f", "arguments": '["Oslo"]'}], "tool call arguments that are no JSON object"),
        ([{"name": "f", "arguments": []}], "tool call arguments that are no JSON object"),
        ([{"name": "f", "arguments": 0}], "tool call arguments that are no JSON object"),
        ([{"id": 7, "name": "f"}], "a tool call whose 'id' is not text"),
        (
            [{"name": "f", "arguments": {"day": datetime.date(2026, 1, 2)}}],
            "a date in a tool call or schema, where JSON has none",
        ),
        (
            [{"name": "f", "arguments": '{"a": ' + "[" * 200 + "]" * 200 + "}"}],
            "a tool call or schema that is nested more than 100 deep",
        ),
    ],
)
def test_why_a_call_is_not_used(given, reason):
    with pytest.raises(RowProblem) as caught:
        read_calls(given)
    assert str(caught.value) == reason


# 4.12 of the pains.
def test_keys_that_hold_none_go_at_every_depth_and_list_items_stay():
    value = {"a": None, "b": {"c": None, "d": 0, "e": False, "f": ""}, "g": [None, {"h": None, "i": [None]}], "j": ()}
    assert cleaned(value) == {"b": {"d": 0, "e": False, "f": ""}, "g": [None, {"i": [None]}], "j": []}


def test_a_null_in_json_text_goes_too():
    assert read_calls([{"name": "f", "arguments": '{"x": null, "y": [null]}'}]) == [call("f", y=[None])]
    assert read_tools('[{"name": "f", "description": null}]') == [{"type": "function", "function": {"name": "f"}}]


@pytest.mark.parametrize(
    "given",
    [
        [TOOL],
        [SCHEMA],
        TOOL,
        SCHEMA,
        json.dumps([TOOL]),
        json.dumps([SCHEMA]),
        json.dumps(SCHEMA),
        [json.dumps(SCHEMA)],
        [{"function": SCHEMA}],
        [{"type": "function", **SCHEMA}],
        [{"type": "Function", "function": SCHEMA}],
        [{"type": "function", "function": {**SCHEMA, "strict": None}, "name": None}],
    ],
)
def test_every_shape_of_a_schema_is_one_shape(given):
    assert read_tools(given) == [TOOL]


@pytest.mark.parametrize("given", [None, [], "", "[]", "null", {}])
def test_no_tools(given):
    assert read_tools(given) is None


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("weather", "'tools' is not JSON"),
        ("5", "'tools' is no list"),
        (["weather"], "a tool that is not JSON"),
        ([5], "a tool that is no function schema with a name"),
        ([{"type": "web_search"}], "a tool that is no function schema with a name"),
        ([{"function": {"description": "d"}}], "a tool that is no function schema with a name"),
        ([None], "a tool that is no function schema with a name"),
    ],
)
def test_why_tools_are_not_used(given, reason):
    with pytest.raises(RowProblem) as caught:
        read_tools(given)
    assert str(caught.value) == reason


def test_calls_as_text():
    text = calls_as_text([OSLO, {"id": "c2", **call("add", a=1, b=[None, "é"])}])
    assert text == (
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": [null, "é"]}}\n</tool_call>'
    )


def test_tools_as_text_lists_the_schemas_and_says_how_to_call():
    other = {"type": "function", "function": {"name": "größe"}}
    text = tools_as_text([TOOL, other])
    inside = text.partition("<tools>\n")[2].partition("\n</tools>")[0]
    assert [json.loads(line) for line in inside.split("\n")] == [TOOL, other]
    assert "größe" in text
    # The example in it is a call as `calls_as_text` writes them.
    example = text.partition("<tool_call>\n")[2].partition("\n</tool_call>")[0]
    assert list(json.loads(example)) == ["name", "arguments"]


CALLING = {"role": "assistant", "content": "", "tool_calls": [OSLO]}
TALK = Conversation([USER, CALLING], [TOOL])


def test_calls_become_content():
    made = without_tool_support(TALK, calls=True, tools=False)
    assert made == Conversation([USER, {"role": "assistant", "content": calls_as_text([OSLO])}], [TOOL])
    said = Conversation([USER, {**CALLING, "content": "I look.", "reasoning_content": "r"}], None, (None, False))
    assert without_tool_support(said, calls=True, tools=False) == Conversation(
        [USER, {"role": "assistant", "content": f"I look.\n{calls_as_text([OSLO])}", "reasoning_content": "r"}],
        None,
        (None, False),
    )


def test_tools_go_into_a_new_system_turn():
    made = without_tool_support(TALK, calls=False, tools=True)
    assert made == Conversation([{"role": "system", "content": tools_as_text([TOOL])}, USER, CALLING])
    flagged = Conversation(TALK.messages, TALK.tools, (None, False))
    assert without_tool_support(flagged, calls=False, tools=True).learn == (None, None, False)
    read_only = Conversation(TALK.messages, TALK.tools, (False, None))
    assert without_tool_support(read_only, calls=False, tools=True).learn == (False, False, None)


@pytest.mark.parametrize(("before", "after"), [("Be kind.", "Be kind.\n\n"), ("", "")])
def test_tools_go_into_the_system_turn_that_is_there(before, after):
    system = {"role": "system", "content": before}
    made = without_tool_support(
        Conversation([system, *TALK.messages], [TOOL], (None, None, True)), calls=False, tools=True
    )
    system = {"role": "system", "content": after + tools_as_text([TOOL])}
    assert made == Conversation([system, *TALK.messages], None, (None, None, True))


def test_nothing_is_written_where_there_is_nothing():
    plain = Conversation([USER, {"role": "assistant", "content": "a"}])
    assert without_tool_support(plain, calls=True, tools=True) == plain
    assert without_tool_support(TALK, calls=False, tools=False) == TALK


def test_the_conversation_itself_is_not_changed():
    before = json.dumps([TALK.messages, TALK.tools])
    without_tool_support(TALK, calls=True, tools=True)
    assert json.dumps([TALK.messages, TALK.tools]) == before
