"""Reading turns: names of roles, content, parts, calls and flags; and joining turns for templates that insist on it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.data.conversation import Conversation, RowProblem
from hasten.data.formats import detect
from hasten.data.turns import ROLE_ALIASES, neighbours_merged, read_turns, system_folded

USER = {"role": "user", "content": "q"}
REPLY = {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "sunny"}


def read_messages(turns, tools=None):
    """Turns as a row has them."""
    return detect([{"messages": [USER, REPLY]}]).read({"messages": turns, "tools": tools})


def problem(turns):
    with pytest.raises(RowProblem) as caught:
        read_messages(turns)
    return str(caught.value)


# 4.9 of the pains.
@pytest.mark.parametrize(
    ("role", "aliases"),
    [
        ("system", "system developer"),
        ("user", "human user input prompter"),
        ("assistant", "gpt assistant model bot chatgpt bing output"),
        ("tool", "observation tool function function_response ipython"),
    ],
)
def test_names_of_roles(role, aliases):
    for alias in aliases.split():
        for spelled in (alias, alias.upper(), alias.title()):
            turns = [USER, {"from": spelled, "value": "x"}, REPLY]
            assert read_messages(turns).messages == [USER, {"role": role, "content": "x"}, REPLY]
        assert ROLE_ALIASES[alias] == role


def test_an_unknown_role_is_shortened():
    assert problem([{"from": "narrator", "value": "x"}]) == "unknown role 'narrator'"
    assert problem([{"role": "so\nlong " * 20, "content": "x"}]) == f"unknown role '{'so long ' * 4}so lo...'"
    assert problem([{"role": ["user"], "content": "x"}]) == "unknown role '['user']'"


# 4.12 of the pains.
def test_a_function_call_turn_is_an_assistant_that_calls():
    one = {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Oslo"}}'}
    two = {"from": "Function_Call", "value": json.dumps([{"name": "weather", "arguments": '{"city": "Oslo"}'}, CALL])}
    read = read_messages([USER, one, {"from": "observation", "value": "sunny"}, two])
    assert read.messages == [USER, CALLING, RESULT, {**CALLING, "tool_calls": [CALL, CALL]}]


def test_calls_stand_beside_null_empty_or_no_content():
    for beside in ({"content": None}, {"content": ""}, {}):
        assert read_messages([USER, {"role": "assistant", **beside, "tool_calls": [CALL]}]).messages[1] == CALLING
    said = {"role": "assistant", "content": "I look.", "tool_calls": [{"id": "c1", **CALL}]}
    result = {"role": "tool", "content": "sunny", "tool_call_id": "c1", "name": "weather"}
    assert read_messages([USER, said, result, REPLY]).messages == [USER, said, result, REPLY]


def test_the_older_way_of_one_call():
    older = {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": '{"city":"Oslo"}'}}
    result = {"role": "function", "name": "weather", "content": "sunny"}
    assert read_messages([USER, older, result]).messages == [USER, CALLING, {**RESULT, "name": "weather"}]


def test_empty_calls_are_no_calls():
    assert read_messages([{**USER, "tool_calls": []}, {**REPLY, "tool_calls": []}]) == Conversation([USER, REPLY])
    assert problem([USER, {"role": "assistant", "content": None, "tool_calls": []}]) == "None in 'content'"


def test_a_tool_may_answer_nothing_but_not_null():
    nothing = {"role": "tool", "content": ""}
    assert read_messages([USER, CALLING, nothing, REPLY]).messages[2] == nothing
    assert problem([USER, CALLING, {"role": "tool", "content": None}]) == "None in 'content'"


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ({"from": "function_call", "value": "weather(Oslo)"}, "a tool call that is not JSON"),
        ({"from": "function_call", "value": "[]"}, "a function_call without a call"),
        ({"from": "function_call", "value": None}, "a function_call without a call"),
        ({"role": "user", "content": "q", "tool_calls": [CALL]}, "tool calls in a turn of role 'user'"),
        ({"role": "assistant", "content": "a", "tool_calls": 5}, "tool calls that are no list"),
        ({"role": "tool", "content": "x", "tool_call_id": 7}, "'tool_call_id' is not text"),
        ({"role": "assistant", "content": "x", "reasoning_content": ["r"]}, "'reasoning_content' is not text"),
        ({"role": "assistant", "content": " ", "reasoning_content": "r"}, "empty content"),
    ],
)
def test_why_a_turn_is_not_used(turn, reason):
    assert problem([USER, turn, REPLY]) == reason


def test_only_known_keys_that_hold_something_are_kept():
    turns = [
        {**USER, "name": "Ann", "id": 7, "tool_calls": None, "weight": None},
        {**REPLY, "reasoning_content": "because", "name": None, "value": None, "score": 0.5},
    ]
    assert read_messages(turns).messages == [{**USER, "name": "Ann"}, {**REPLY, "reasoning_content": "because"}]


def test_text_parts_are_joined():
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b", "image_url": None}, {"text": "c"}]
    assert read_messages([{"role": "user", "content": parts}, REPLY]).messages[0]["content"] == "a bc"


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([{"type": "image", "text": None}], "content has an image; only text is trained"),
        ([{"type": "image_url", "image_url": {"url": "u"}}], "content has an image; only text is trained"),
        ([{"type": "text", "text": "a"}, {"type": "input_audio"}], "content has audio; only text is trained"),
        ([{"type": "video"}], "content has a video; only text is trained"),
        ([{"type": "smell"}], "content has a part of type 'smell'; only text is trained"),
        ([{"type": "text", "text": None}], "None in 'content'"),
        ([{"type": "text", "text": 5}], "'content' is not text"),
        (["a"], "a part of the content that is no object"),
        ([], "empty content"),
        ({"text": "a"}, "'content' is not text"),
        (5, "'content' is not text"),
        (True, "'content' is not text"),
    ],
)
def test_content_that_is_not_text(parts, reason):
    assert problem([{"role": "user", "content": parts}, REPLY]) == reason


@pytest.mark.parametrize(
    ("flags", "learn"),
    [
        ({}, ()),
        ({"train": None, "weight": None}, ()),
        ({"train": False}, (None, False)),
        ({"train": True}, (None, True)),
        ({"weight": 0}, (None, False)),
        ({"weight": 1.0}, (None, True)),
        ({"weight": 1, "train": True}, (None, True)),
    ],
)
def test_turns_say_whether_they_are_learnt(flags, learn):
    assert read_messages([USER, {**REPLY, **flags}]) == Conversation([USER, REPLY], None, learn)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"train": "yes"}, "'train' is neither true nor false"),
        ({"train": 1}, "'train' is neither true nor false"),
        ({"weight": 0.5}, "'weight' is neither 0 nor 1"),
        ({"weight": "1"}, "'weight' is neither 0 nor 1"),
        ({"weight": [1]}, "'weight' is neither 0 nor 1"),
        ({"weight": 0, "train": True}, "'train' and 'weight' disagree"),
    ],
)
def test_a_flag_of_another_type_is_refused(flags, reason):
    assert problem([USER, {**REPLY, **flags}]) == reason


def test_tools_come_with_the_messages():
    made = read_messages([USER, REPLY], '[{"name": "f"}]')
    assert made.tools == [{"type": "function", "function": {"name": "f"}}]


def test_turns_without_an_assistant_can_be_read_but_are_no_conversation():
    assert read_turns([USER]) == Conversation([USER])
    assert problem([USER]) == "no assistant turn"


def user(text, **more):
    return {"role": "user", "content": text, **more}


def reply(text, **more):
    return {"role": "assistant", "content": text, **more}


# 4.10 of the pains.
@pytest.mark.parametrize(
    ("messages", "merged"),
    [
        ([USER, REPLY], [USER, REPLY]),
        ([user("a"), user("b"), user("c"), REPLY], [user("a\n\nb\n\nc"), REPLY]),
        ([USER, reply("a"), reply("b")], [USER, reply("a\n\nb")]),
        ([{"role": "system", "content": ""}, SYSTEM, USER, REPLY], [SYSTEM, USER, REPLY]),
        ([USER, REPLY, CALLING, RESULT, RESULT, REPLY], [USER, REPLY, CALLING, RESULT, RESULT, REPLY]),
        ([USER, CALLING, REPLY], [USER, CALLING, REPLY]),
        ([USER, CALLING, CALLING], [USER, CALLING, CALLING]),
        (
            [user("a", name="Ann"), user("b", name="Ann"), user("c"), REPLY],
            [user("a\n\nb", name="Ann"), user("c"), REPLY],
        ),
        ([USER, reply("a", reasoning_content="r"), reply("b")], [USER, reply("a\n\nb", reasoning_content="r")]),
        (
            [USER, reply("a"), reply("b", reasoning_content="r")],
            [USER, reply("a"), reply("b", reasoning_content="r")],
        ),
    ],
)
def test_neighbours_of_one_role_are_merged(messages, merged):
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert neighbours_merged(Conversation(messages, tools)) == Conversation(merged, tools)


def test_merged_turns_agree_on_being_learnt():
    made = neighbours_merged(Conversation([user("a"), user("b"), REPLY, REPLY], None, (None, None, False, False)))
    assert made == Conversation([user("a\n\nb"), reply("a\n\na")], None, (None, False))
    with pytest.raises(RowProblem, match="neighbouring turns of role 'assistant' do not agree on being learnt"):
        neighbours_merged(Conversation([USER, REPLY, REPLY], None, (None, False, None)))


@pytest.mark.parametrize(
    ("messages", "folded"),
    [
        ([USER, REPLY], [USER, REPLY]),
        ([SYSTEM, USER, REPLY, USER], [user("s\n\nq"), REPLY, USER]),
        ([{"role": "system", "content": ""}, USER, REPLY], [USER, REPLY]),
        ([SYSTEM, SYSTEM, USER, REPLY], [user("s\n\ns\n\nq"), REPLY]),
        ([SYSTEM, reply("hello"), USER, REPLY], [reply("hello"), user("s\n\nq"), REPLY]),
        # An instruction that comes later does not reach the turns before it.
        ([SYSTEM, USER, REPLY, SYSTEM, USER, REPLY], [user("s\n\nq"), REPLY, user("s\n\nq"), REPLY]),
    ],
)
def test_a_system_turn_is_folded_into_the_next_user_turn(messages, folded):
    assert system_folded(Conversation(messages)) == Conversation(folded)


def test_folding_needs_a_user_turn_and_flags_that_agree():
    for messages in ([SYSTEM, REPLY], [USER, SYSTEM, REPLY]):
        with pytest.raises(RowProblem, match="no user turn follows the system turn"):
            system_folded(Conversation(messages))
    with pytest.raises(RowProblem, match="a system turn and its user turn do not agree on being learnt"):
        system_folded(Conversation([SYSTEM, USER, REPLY], None, (False, None, None)))
    made = system_folded(Conversation([SYSTEM, USER, REPLY], [], (False, False, None)))
    assert made == Conversation([user("s\n\nq"), REPLY], [], (False, None))


def test_joining_changes_nothing_in_the_conversation_itself():
    messages = [dict(SYSTEM), user("a"), user("b"), dict(REPLY)]
    talk = Conversation(messages)
    neighbours_merged(talk)
    system_folded(talk)
    assert talk == Conversation([SYSTEM, user("a"), user("b"), REPLY])


def optional(strategy):
    return st.none() | strategy


TEXT = st.text(max_size=12)
FILLED = TEXT.map(lambda text: f"x{text}")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
ARGUMENTS = optional(st.dictionaries(TEXT, JSON, max_size=3))
FUNCTION = st.fixed_dictionaries({"name": FILLED, "arguments": ARGUMENTS | ARGUMENTS.map(json.dumps)})
CALLS = FUNCTION | st.fixed_dictionaries(
    {"id": optional(TEXT), "type": optional(st.just("function")), "function": FUNCTION}
)
PARTS = st.lists(
    st.fixed_dictionaries({"type": st.just("text"), "text": FILLED, "image": st.none()}), min_size=1, max_size=2
)
EXTRAS = {
    "name": optional(TEXT),
    "tool_call_id": optional(TEXT),
    "reasoning_content": optional(TEXT),
    "train": optional(st.booleans()),
    "seen": st.integers(),
}


def test_turns_as_a_tables_cell_has_them():
    assert read_turns(json.dumps([USER, REPLY])) == Conversation([USER, REPLY])
    assert problem("a question?") == "messages that are text, and not JSON"
    assert problem("") == problem('{"role": "user"}') == problem("[]") == "no messages"


ROLES = sorted(alias for alias in ROLE_ALIASES if alias != "function_call")
SPOKEN = st.fixed_dictionaries({"content": FILLED | PARTS}) | st.fixed_dictionaries(
    {"content": st.none(), "value": FILLED}
)
TURN = st.tuples(
    st.sampled_from(ROLES).map(lambda role: {"role": role}) | st.sampled_from(ROLES).map(lambda role: {"from": role}),
    SPOKEN,
    st.fixed_dictionaries({}, optional=EXTRAS),
).map(lambda parts: parts[0] | parts[1] | parts[2])
CALLING_TURN = st.tuples(
    st.sampled_from(["assistant", "GPT"]).map(lambda role: {"role": role}),
    st.fixed_dictionaries({"content": optional(TEXT), "tool_calls": st.lists(CALLS, min_size=1, max_size=2)}),
    st.fixed_dictionaries({}, optional=EXTRAS),
).map(lambda parts: parts[0] | parts[1] | parts[2])
FUNCTION_CALL_TURN = FUNCTION.map(lambda function: {"from": "function_call", "value": json.dumps(function)})
CONVERSATIONS = st.lists(TURN | CALLING_TURN | FUNCTION_CALL_TURN, max_size=6).map(lambda turns: [*turns, REPLY])
TALKS = CONVERSATIONS.map(read_messages)


def has_none_key(value):
    if isinstance(value, dict):
        return any(item is None or has_none_key(item) for item in value.values())
    return isinstance(value, list) and any(has_none_key(item) for item in value)


@given(CONVERSATIONS)
def test_reading_what_was_read_changes_nothing(turns):
    read = read_messages(turns)
    assert read_messages(read.messages).messages == read.messages
    assert read.learn == () or len(read.learn) == len(turns)
    assert len(read.messages) == len(turns)


@given(CONVERSATIONS)
def test_no_key_of_a_message_holds_none_and_content_is_text(turns):
    for message in read_messages(turns).messages:
        assert not has_none_key(message)
        assert isinstance(message["content"], str)
        assert set(message) <= {"role", "content", "tool_calls", "tool_call_id", "name", "reasoning_content"}
        for call in message.get("tool_calls", []):
            assert isinstance(call["function"]["arguments"], dict)


@given(TALKS)
def test_merged_conversations_have_nothing_left_to_merge(talk):
    try:
        merged = neighbours_merged(talk)
    except RowProblem:
        assert talk.learn
        return
    assert neighbours_merged(merged) == merged
    assert sum(len(message["content"].replace("\n", "")) for message in merged.messages) == sum(
        len(message["content"].replace("\n", "")) for message in talk.messages
    )


@given(TALKS)
def test_folded_conversations_have_no_system_turn(talk):
    try:
        folded = system_folded(talk)
    except RowProblem:
        assert any(message["role"] == "system" for message in talk.messages)
        return
    assert all(message["role"] != "system" for message in folded.messages)
    assert len(folded.flags) == len(folded.messages)
