"""Headers and ends of turns, found by asking the template; the shapes of real templates are in test_spans.py."""

import pytest

from hasten.data.borders import Border, Borders
from hasten.data.rendering import Renderer
from support import tiny

TALK = [
    {"role": "user", "content": "U"},
    {"role": "assistant", "content": "A"},
    {"role": "user", "content": "V"},
    {"role": "assistant", "content": "B"},
]
HEADER = "<|im_end|>\n<|im_start|>assistant\n"
NEXT = "<|im_end|>\n<|im_start|>user\n"


class Counting:
    """A template that counts how often it is rendered."""

    def __init__(self, template):
        tokenizer = tiny.tokenizer()
        tokenizer.chat_template = template
        self._renderer = Renderer(tokenizer)
        self.calls = 0

    def __call__(self, messages, tools=None, ask=False):
        self.calls += 1
        return self._renderer.render(messages, tools, ask)


def borders(template=tiny.CHATML, controls=tiny.SPECIALS):
    return Borders(Counting(template), controls)


def test_the_header_is_what_asking_writes_and_the_end_what_is_written_anyway():
    found = borders().border(TALK, None, 1, HEADER, NEXT)
    assert found == Border(len(HEADER), len("<|im_end|>"), "")
    question = borders().border(TALK, None, 2, NEXT, HEADER)
    assert question == Border(len(NEXT), len("<|im_end|>"), "")


def test_what_is_known_is_not_asked_again():
    render = Counting(tiny.CHATML)
    made = Borders(render, tiny.SPECIALS)
    made.border(TALK, None, 1, HEADER, NEXT)
    used = render.calls
    other = [{**message, "content": message["content"] * 9} for message in TALK]
    assert made.border(other, None, 1, HEADER, NEXT) == Border(len(HEADER), 10, "") and render.calls == used
    made.border(TALK, None, 3, HEADER, "<|im_end|>\n")
    assert render.calls > used, "the last answer is another matter"


def test_what_only_the_prompt_has():
    template = tiny.CHATML.replace("assistant\n", "assistant\n<think>")
    assert borders(template).border(TALK, None, 1, HEADER, NEXT).unseen == "<think>"
    assert borders(template).border(TALK, None, 1, f"{HEADER}<tool>", NEXT) == Border(len(HEADER), 10, "<think>")


def test_of_a_template_that_refuses_everything_but_the_row_content_alone_is_learnt():
    template = "{% if messages | length != 4 %}{{ raise_exception('four') }}{% endif %}" + tiny.CHATML
    assert borders(template).border(TALK, None, 1, HEADER, NEXT) == Border(len(HEADER), 0, "")


@pytest.mark.parametrize("end", ["END", "### End", "<eot>"])
def test_an_end_that_is_no_control_token(end):
    template = tiny.CHATML.replace("<|im_end|>", end)
    after = NEXT.replace("<|im_end|>", end)
    assert borders(template).border(TALK, None, 1, HEADER.replace("<|im_end|>", end), after).tail == len(end)


def test_control_tokens_of_any_look_are_compared_whole():
    template = tiny.CHATML.replace("<|im_start|>", "]~b]").replace("<|im_end|>", "[e~[")
    header, after = (text.replace("<|im_start|>", "]~b]").replace("<|im_end|>", "[e~[") for text in (HEADER, NEXT))
    assert borders(template, ["]~b]", "[e~["]).border(TALK, None, 1, header, after) == Border(len(header), 4, "")


def test_memory_stays_bounded(monkeypatch):
    monkeypatch.setattr("hasten.data.borders._MOST_KNOWN", 2)
    made = borders()
    for number in range(5):
        assert made.border(TALK, None, 1, HEADER, f"{NEXT}{number}").tail == 10
    assert len(made._known) <= 2
