"""Words exchanged for marks, and what that shows of a rendering."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.data.exchange import alike, behind, difference, exchanged, mark
from hasten.data.rendering import Renderer
from hasten.errors import HastenError
from support import tiny

CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo", "days": 3}}}
TALK = [
    {"role": "user", "content": "U1"},
    {"role": "assistant", "content": "", "reasoning_content": "so", "tool_calls": [CALL]},
    {"role": "tool", "content": "rain", "name": "weather"},
]
CALLS = (
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% for c in m.tool_calls or [] %}"
    "{{ '[' + c.function.name }}{{ c.function.arguments | tojson }}{{ ']' }}{% endfor %}{{ '</>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def test_one_message_is_exchanged_and_nothing_else():
    made = exchanged(TALK, 2)
    assert made[:2] == TALK[:2] and made[2] == {"role": "tool", "content": mark(2), "name": "weather"}
    assert TALK[2]["content"] == "rain", "the messages are not changed"


def test_calls_keep_names_keys_and_the_absence_of_content():
    message = exchanged(TALK, 1)[1]
    assert (message["content"], message["reasoning_content"]) == ("", mark(1))
    assert message["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": mark(1), "days": mark(1)}}
    assert message["tool_calls"][0]["id"] == "c1"
    empty = [{**TALK[1], "content": None, "tool_calls": [{"function": {"name": "now", "arguments": {}}}]}]
    assert exchanged(empty, 0)[0]["tool_calls"][0]["function"]["arguments"] == {mark(0): mark(0)}
    text = [{**TALK[1], "tool_calls": [{"function": {"name": "now", "arguments": '{"a": 1}'}}]}]
    assert exchanged(text, 0)[0]["tool_calls"][0]["function"]["arguments"] == f'{{"{mark(0)}": "{mark(0)}"}}'


def test_words_or_calls_alone():
    words, calls = exchanged(TALK, 1, calls=False)[1], exchanged(TALK, 1, words=False)[1]
    assert words["tool_calls"] == [CALL] and words["reasoning_content"] == mark(1)
    assert calls["tool_calls"] != [CALL] and calls["reasoning_content"] == "so"


@given(st.text(alphabet="ab", max_size=9), st.text(alphabet="ab", max_size=9), st.text(alphabet="ab", max_size=9))
def test_what_two_texts_share(start, one, other):
    first, second = start + one, start + other
    length = alike(first, second)
    assert (
        first[:length] == second[:length]
        and first[length : length + 1] != second[length : length + 1]
        or (length == min(len(first), len(second)))
    )
    begin, end = difference(first, second)
    assert begin == length and begin + end <= min(len(first), len(second))
    assert end == 0 or first[-end:] == second[-end:]


def test_what_stands_behind_a_message():
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = CALLS
    render = Renderer(tokenizer).render
    assert behind(render, TALK[:1], None) == "</>"
    assert behind(render, TALK[:1], None, ask=True) == "</><assistant>"
    assert behind(render, TALK[:1], None, then="tool") == "</><tool>"
    assert behind(render, TALK[:2], None) == "}]</>", "the text of the arguments ends with a brace of its own"
    silent = CALLS.replace("m.content }}", "(m.content if m.role != 'user' else '') }}", 1)
    tokenizer.chat_template = silent
    assert behind(Renderer(tokenizer).render, TALK[:1], None) is None


def test_a_refusal_is_passed_on():
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(ValueError, match="refuses the turns 'user' .no.") as caught:
        behind(Renderer(tokenizer).render, TALK[:1], None)
    assert not isinstance(caught.value, HastenError)
