"""Sample questions: only what the model can be asked, read as the rows are."""

import pytest

from hasten.data.settings import DataSettings
from hasten.training.samples import answer_all, choose
from support import tiny

REFUSES_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + tiny.CHATML


def questions(rows, *, tokenizer=None, count=9, **settings):
    samples = choose(rows, DataSettings(**settings), tokenizer or tiny.tokenizer(), count)
    return [[message["content"] for message in sample.messages] for sample in samples]


ROWS = [{"question": f"q{number}", "answer": "a"} for number in range(5)]


def test_the_first_questions_are_taken_up_to_the_first_answer():
    assert questions(ROWS, count=2) == [["q0"], ["q1"]]
    turns = [("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")]
    assert questions([{"messages": [{"role": role, "content": text} for role, text in turns]}]) == [["s", "q"]]
    assert questions(ROWS, count=0) == questions([]) == []


def test_what_cannot_be_asked_is_passed_over():
    begun = {"messages": [{"role": "assistant", "content": "hello"}, {"role": "user", "content": "x"}]}
    asked = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    assert questions([begun, {"messages": []}, asked]) == [["q"]]
    assert questions([{"prompt": "def f", "completion": "oo"}]) == [], "plain text is no question"
    assert questions([{"question": "the red dog " * 50, "answer": "a"}, *ROWS], max_length=64, count=1) == [["q0"]]


def test_rows_that_the_template_refuses_are_passed_over_or_read_as_they_are_trained():
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = REFUSES_SYSTEM
    rows = [{"system": "s", "question": "q", "answer": "a"}, *ROWS[:1]]
    assert questions(rows, tokenizer=tokenizer) == [["q0"]]
    assert questions(rows, tokenizer=tokenizer, fold_system=True) == [["s\n\nq"], ["q0"]]


@pytest.mark.parametrize("count", [0, 2])
def test_every_sample_has_its_answer(count, tiny_llama):
    tokenizer = tiny.tokenizer()
    samples = choose(ROWS, DataSettings(), tokenizer, count)
    answers = answer_all(tiny_llama, tokenizer, samples, 3)
    assert len(answers) == count and all(isinstance(text, str) for text in answers)
