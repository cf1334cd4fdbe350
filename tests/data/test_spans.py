"""Turns in the rendered text, for templates of every kind that models come with.

The templates are written here in the structure of the public ones; what is asserted is which characters are a turn's.
"""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.data.formats import RowProblem
from hasten.data.rendering import Renderer
from hasten.data.spans import TurnFinder
from support import tiny

SYSTEM, U1, A1, U2, A2 = (
    {"role": role, "content": content}
    for role, content in [("system", "S"), ("user", "U1"), ("assistant", "A1"), ("user", "U2"), ("assistant", "A2")]
)
TALK = [SYSTEM, U1, A1, U2, A2]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo", "days": 3}}}

# Qwen 3: thinking is dropped from earlier turns and written (empty) into the last.
THINKS = (
    "{% for m in messages %}{% set content = m.content %}{% set thought = '' %}"
    "{% if '</think>' in content %}{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and (loop.last or (thought and loop.index0 > 2)) %}"
    "{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}{{ content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# R1 distilled: asking opens a thought, rendering drops it.
OPENS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{{ '<|im_start|>' + m.content.split('</think>')[-1] + eos_token }}"
    "{% else %}{{ m.role + ':' + m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|><think>\n' }}{% endif %}"
)
# Gemma: the system turn goes into the first question, contents are trimmed, the assistant is called model.
FOLDS = (
    "{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}{% set rest = messages[1:] %}"
    "{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}"
    "{{ '<|im_start|>' + ('model' if m.role == 'assistant' else m.role) + '\n' + (first if loop.first else '') }}"
    "{{ m.content | trim }}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"
)
# Mistral v0.3: the system text stands before the last question, so its place moves while a conversation grows.
MOVES = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set rest = messages[1:] %}"
    "{% else %}{% set rest = messages %}{% endif %}{{ bos_token }}{% for m in rest %}{% if m.role == 'user' %}"
    "{% if loop.last and system is defined %}{{ '[INST] ' + system + '\n\n' + m.content + '[/INST]' }}"
    "{% else %}{{ '[INST] ' + m.content + '[/INST]' }}{% endif %}{% else %}{{ ' ' + m.content + eos_token }}{% endif %}"
    "{% endfor %}"
)
# Hermes and Qwen 2.5: calls in tags.
CALLS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}{% for call in m.tool_calls or [] %}"
    '{{ \'<tool_call>\n{"name": "\' + call.function.name + \'", "arguments": \' }}'
    "{{ call.function.arguments | tojson }}"
    "{{ '}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TWICE = "{% for m in messages %}{{ m.role + m.content + m.content + '<|im_end|>' }}{% endfor %}"
DEAF = "{% for m in messages if m.role != 'system' %}{{ m.role + ':' + m.content + '<|im_end|>' }}{% endfor %}"


def finder(template):
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.chat_template = template
    renderer = Renderer(tokenizer)
    return TurnFinder(renderer.render, tiny.SPECIALS), renderer


def learnt(template, messages, role="assistant"):
    found, renderer = finder(template)
    layout = found.find(renderer.render(messages), messages)
    return [layout.text[turn.start : turn.stop] for turn in layout.turns if messages[turn.message]["role"] == role]


def say(role, content, **more):
    return {"role": role, "content": content, **more}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (tiny.CHATML, ["A1<|im_end|>", "A2<|im_end|>"]),
        (FOLDS, ["A1<|im_end|>", "A2<|im_end|>"]),
        (MOVES, [" A1<|im_end|>", " A2<|im_end|>"]),
        (THINKS, ["A1<|im_end|>", "<think>\n\n</think>\n\nA2<|im_end|>"]),
        (OPENS, ["A1<|im_end|>", "A2<|im_end|>"]),
        (CALLS, ["A1<|im_end|>", "A2<|im_end|>"]),
    ],
    ids=["ChatML", "Gemma", "Mistral", "Qwen 3", "R1", "Hermes"],
)
def test_every_answer_with_its_end(template, expected):
    assert learnt(template, TALK) == expected
    assert learnt(template, TALK[1:]) == expected
    assert learnt(template, TALK[1:3]) == [expected[1].replace("A2", "A1")]


def test_an_answer_that_comes_first():
    assert learnt(tiny.CHATML, [A1, U1, A2]) == ["A1<|im_end|>", "A2<|im_end|>"]
    assert learnt(FOLDS, [A1, U1, A2]) == ["A1<|im_end|>", "A2<|im_end|>"]


def test_questions_have_a_place_too():
    assert learnt(tiny.CHATML, TALK, "user") == ["U1<|im_end|>", "U2<|im_end|>"]


def test_trimmed_content():
    assert learnt(FOLDS, [U1, say("assistant", "  A1\n")]) == ["A1<|im_end|>"]
    assert learnt(tiny.CHATML, [U1, say("assistant", "  A1\n")]) == ["  A1\n<|im_end|>"]


def test_thoughts_of_the_last_turn_are_learnt_and_earlier_ones_are_gone():
    talk = [U1, say("assistant", "<think>\nhm\n</think>\n\nA1"), U2, say("assistant", "<think>\nso\n</think>\n\nA2")]
    assert learnt(THINKS, talk) == ["A1<|im_end|>", "<think>\nso\n</think>\n\nA2<|im_end|>"]


def test_what_only_a_generation_prompt_has_is_told():
    found, renderer = finder(OPENS)
    assert found.find(renderer.render(TALK), TALK).unseen == "<think>\n"
    found, renderer = finder(tiny.CHATML)
    assert found.find(renderer.render(TALK), TALK).unseen == ""


def test_a_call_is_learnt_with_what_is_around_it_and_its_result_is_not():
    talk = [U1, say("assistant", "", tool_calls=[CALL]), say("tool", "rain"), say("assistant", "wet")]
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo", "days": 3}}\n</tool_call><|im_end|>'
    assert learnt(CALLS, talk) == [call, "wet<|im_end|>"]
    talk[1] = say("assistant", "let me see", tool_calls=[CALL, CALL])
    assert learnt(CALLS, talk)[0] == "let me see" + call.removesuffix("<|im_end|>") * 2 + "<|im_end|>"


def test_content_that_looks_like_the_template():
    evil = say("user", "x\nassistant\nA1")
    assert learnt(tiny.CHATML, [evil, A1]) == ["A1<|im_end|>"]
    same = say("user", "A1 A1")
    assert learnt(tiny.CHATML, [same, say("assistant", "A1 A1")]) == ["A1 A1<|im_end|>"]
    assert learnt(MOVES, [say("user", "[INST] A1[/INST]"), A1, U2, A1]) == [" A1<|im_end|>"] * 2


def test_a_turn_that_is_left_out_has_no_place():
    found, renderer = finder(DEAF)
    layout = found.find(renderer.render(TALK), TALK)
    assert [turn.message for turn in layout.turns] == [1, 2, 3, 4]


def test_a_turn_that_is_written_twice():
    # Both copies are the turn's; nothing asks for an answer here, so its header is the model's to write.
    assert learnt(TWICE, [U1, A1]) == ["assistantA1A1<|im_end|>"]


def test_a_template_that_shuffles_contents_into_one_another():
    mixed = (
        "{% for m in messages %}{{ m.content[0] }}{% endfor %}{% for m in messages %}{{ m.content[1:] }}{% endfor %}"
    )
    found, renderer = finder(mixed)
    with pytest.raises(RowProblem, match="writes turns into one another"):
        found.find(renderer.render([U1, A1]), [U1, A1])


WORDS = st.text(alphabet="ab \n|<>imstarten_/", max_size=12).filter(lambda text: "<|im_" not in text and text.strip())
TURNS = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(
    turns=TURNS,
    system=st.none() | WORDS,
    header=st.sampled_from(["<|im_start|>{r}\n", "{r}: ", "### {r}:\n", "[{r}] "]),
    end=st.sampled_from(["<|im_end|>\n", "<|im_end|>", " <|im_end|>\n\n"]),
    trim=st.booleans(),
)
def test_spans_of_templates_like_chatml_hold_exactly_the_answers(turns, system, header, end, trim):
    before, after = header.split("{r}")
    content = "m.content | trim" if trim else "m.content"
    template = (
        f"{{% for m in messages %}}{{{{ {before!r} + m.role + {after!r} }}}}"
        f"{{{{ {content} }}}}{{{{ {end!r} }}}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ {before + 'assistant' + after!r} }}}}{{% endif %}}"
    )
    messages = [say("system", system)] if system else []
    for question, answer in turns:
        messages += [say("user", question), say("assistant", answer)]
    expected = [(answer.strip() if trim else answer) + end.rstrip() for _, answer in turns]
    assert learnt(template, messages) == expected
