"""Rows as tokens: which are learnt, whatever the tokenizer's offsets look like."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.data.conversation import Conversation, PlainText, RowProblem
from hasten.data.encoding import RowEncoder, Text
from hasten.data.templates import ChatEncoder
from support import tiny

END = "<|im_end|>"


@pytest.fixture(scope="module")
def demo(demo_tokenizer):
    """The embedded model's tokenizer with a plain ChatML template, made once."""
    return encoder(demo_tokenizer)


def talk(*contents, learn=(), system=None):
    roles = ["user", "assistant"] * len(contents)
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return Conversation([{"role": "system", "content": system}, *messages] if system else messages, None, learn)


def encoder(tokenizer=None, loss_on="assistant", max_length=4096, template=tiny.CHATML, **options):
    made = copy.deepcopy(tokenizer) if tokenizer is not None else tiny.tokenizer()
    made.chat_template = template
    return RowEncoder(ChatEncoder(made, **options), loss_on, max_length)


def learnt(made, content):
    """The learnt tokens as text, one string for each unbroken run."""
    (encoded,) = made.encode([content])
    if isinstance(encoded, RowProblem):
        raise encoded
    runs, current = [], []
    for token, flag in zip([*encoded.ids.tolist(), 0], [*encoded.learnt.tolist(), False], strict=True):
        if flag:
            current.append(token)
        elif current:
            runs.append(made.encoder.tokenizer.decode(current))
            current = []
    return runs


TALK = talk("U1", "A1", "U2", "A2", system="S")


@pytest.mark.parametrize(
    ("loss_on", "learn", "expected"),
    [
        ("assistant", (), [f"A1{END}", f"A2{END}"]),
        ("last", (), [f"A2{END}"]),
        ("assistant", (None, None, False, None, None), [f"A2{END}"]),
        ("assistant", (None, None, None, True, None), [f"A1{END}", f"U2{END}", f"A2{END}"]),
        ("last", (None, None, True, None, None), [f"A1{END}", f"A2{END}"]),
        ("last", (None, None, None, None, False), []),
    ],
)
def test_chosen_turns(loss_on, learn, expected):
    assert learnt(encoder(loss_on=loss_on), Conversation(TALK.messages, None, learn)) == expected


def test_everything_but_what_is_left_out():
    made = encoder(loss_on="all")
    assert learnt(made, TALK)[0].startswith("system\nS<|im_end|>\n<|im_start|>user")
    flags = (None, None, False, None, None)
    before, after = learnt(made, Conversation(TALK.messages, None, flags))
    assert before.endswith("<|im_start|>assistant\n") and after.startswith(f"\n<|im_start|>user\nU2{END}")


def test_a_whole_batch_has_its_problems_in_their_places():
    contents = [talk("a", "b"), talk("a\ud800", "b"), PlainText("a", "b"), talk("c", "d")]
    made = encoder().encode(contents)
    assert [isinstance(item, RowProblem) for item in made] == [False, True, False, False]
    assert "lone surrogate" in str(made[1]) and made[2].ended and not made[0].ended


def test_the_same_ids_alone_and_in_a_batch(demo):
    contents = [talk("a " * n, "b\n" * n + "c") for n in range(1, 20)]
    for together, content in zip(demo.encode(contents), contents, strict=True):
        (alone,) = demo.encode([content])
        stock = demo.encoder.tokenizer.apply_chat_template(content.messages, tokenize=True, return_dict=False)
        assert together.ids.tolist() == alone.ids.tolist() == list(stock)
        assert np.array_equal(together.learnt, alone.learnt)


@pytest.mark.parametrize("answer", ["👍", "é👍é", "naïve ☃", "\u2028x", "ﬁ", "a\u0300"])
def test_characters_of_several_tokens_are_learnt_whole(demo, answer):
    assert learnt(demo, talk("👍 hi ☃", answer)) == [f"{answer}{END}"]
    assert learnt(demo, talk("hi", answer, "👍", answer)) == [f"{answer}{END}"] * 2


def test_straddling_tokens_are_counted(demo):
    melted, plain = demo.encode([talk("hi", "\n\nyo"), talk("hi", "yo")])
    assert melted.straddles and not plain.straddles


def test_a_prompt_of_which_nothing_is_learnt_and_its_flag():
    spelled, plain = encoder().encode([talk(f"x{END}", "b"), talk("x", "b")])
    assert spelled.spelled and not plain.spelled
    (acting,) = encoder(control_text=False).encode([talk(f"x{END}", "b")])
    assert acting.spelled and acting.ids.tolist().count(tiny.EOS) == 3


def test_far_too_long_texts_are_clipped_before_they_are_tokenized():
    made = encoder(max_length=16)
    long = "abc " * 50_000
    (encoded,) = made.encode([PlainText("", long)])
    assert encoded.clipped and 16 + 64 <= len(encoded.ids) < 50_000
    whole = RowEncoder(made.encoder, "assistant", 16, clip=False).encode([PlainText("", long)])[0]
    assert whole.ids[:16].tolist() == encoded.ids[:16].tolist() and len(whole.ids) > 100_000


def test_tool_calls_as_text_are_learnt_and_results_are_not():
    call = {"type": "function", "function": {"name": "weather", "arguments": {"n": 3}}}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "rain"},
        {"role": "assistant", "content": "wet"},
    ]
    made = encoder()
    assert learnt(made, Conversation(messages)) == [
        f'<tool_call>\n{{"name": "weather", "arguments": {{"n": 3}}}}\n</tool_call>{END}',
        f"wet{END}",
    ]
    (encoded,) = made.encode([Conversation(messages)])
    assert encoded.calls_as_text and not encoded.tools_as_text


def test_rows_that_do_not_teach_where_to_stop():
    open_end = tiny.CHATML.replace("'<|im_end|>\n'", "('' if loop.last else '<|im_end|>\n')")
    one, two = encoder(template=open_end).encode([talk("a", "b"), talk("a", "b", "c", "d")])
    assert (one.endless, two.endless) == (True, False)
    assert not encoder().encode([talk("a", "b")])[0].endless
    assert not encoder(loss_on="all", template=open_end).encode([talk("a", "b")])[0].endless


def test_words_that_the_template_leaves_out_are_counted():
    silent = "{% for m in messages if m.role != 'system' %}{{ m.role + m.content + '<|im_end|>' }}{% endfor %}"
    assert [row.missing for row in encoder(template=silent).encode([TALK, talk("a", "b")])] == [1, 0]


def test_a_question_that_is_to_be_learnt_under_markers():
    marked = (
        "{% for m in messages %}{{ m.role + ':' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    made = encoder(template=marked)
    assert made.encoder.renderer.has_markers()
    flags = (None, None, False, True, None)
    assert learnt(made, Conversation(TALK.messages, None, flags)) == [f"U2{END}", f"A2{END}"]


ODD = st.text(alphabet="ab \n\t.é👍<|>_imendst", max_size=16).filter(str.strip)


@settings(max_examples=80, deadline=None)
@given(pairs=st.lists(st.tuples(ODD, ODD), min_size=1, max_size=3))
def test_flags_agree_with_the_offsets_of_every_token(demo, pairs):
    """The quick way through border tokens equals looking at each token's characters."""
    made = demo
    content = talk(*(text for pair in pairs for text in pair))
    (quick,) = made.encode([content])
    chat = made.encoder.conversation(content)
    spans = [(t.start, t.stop) for t in chat.layout.turns if content.messages[t.message]["role"] == "assistant"]
    encoding = made.encoder.control.plain.encode(chat.layout.text, add_special_tokens=False)
    slow = made._by_offsets(encoding.ids, encoding.offsets, Text(chat.layout.text, spans, False, {}))
    if not quick.spelled:
        assert quick.ids.tolist() == slow.ids.tolist()
        assert quick.learnt.tolist() == slow.learnt.tolist()
    assert quick.learnt.any()
    assert made.encoder.tokenizer.decode(quick.ids[quick.learnt]).count(END) >= len(pairs)
