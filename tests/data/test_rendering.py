"""The template's own text: dates stand still, tools and calls reach templates in the form they read."""

import datetime

import pytest

from hasten.data.conversation import Conversation, RowProblem
from hasten.data.rendering import Renderer
from support import tiny

QUESTION = [{"role": "user", "content": "hi"}]
DATED = "\n{{ strftime_now('%d %b %Y, %-d/%m') }}{% for m in messages %}{{ m.content }}{% endfor %}"
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Ål", "days": 3}}}
SCHEMA = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
TALK = Conversation([*QUESTION, {"role": "assistant", "content": "", "tool_calls": [CALL]}], [SCHEMA])

AS_MAPPING = (
    "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}{{ m.role + m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
)
AS_TEXT = AS_MAPPING.replace("{{ c.function.arguments | tojson }}", "{{ '' + c.function.arguments }}")
BY_KEY = AS_MAPPING.replace(
    "{{ c.function.arguments | tojson }}",
    "{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }};{% endfor %}",
)


def renderer(template, day=None):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    return Renderer(tokenizer, day)


def test_it_renders_as_transformers_does():
    tokenizer = tiny.tokenizer()
    for ask in (False, True):
        stock = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=ask)
        assert Renderer(tokenizer).render(QUESTION, ask=ask) == stock


def test_the_date_stands_still():
    assert renderer(DATED, datetime.date(2024, 7, 6)).render(QUESTION) == "\n06 Jul 2024, 6/07hi"
    today = datetime.date.today().strftime("%d %b %Y")
    assert renderer(DATED).render(QUESTION).startswith(f"\n{today}")
    assert Renderer.prints_date(DATED) and not Renderer.prints_date(tiny.CHATML)


def test_many_at_once_and_the_ones_that_are_refused():
    refused = "{% if m.content == 'no' %}{{ raise_exception('not that') }}{% endif %}"
    picky = f"{{% for m in messages %}}{refused}{{{{ m.content }}}}{{% endfor %}}"
    talks = [Conversation([{"role": "user", "content": text}]) for text in ("a", "no", "b")]
    texts = renderer(picky).render_all(talks)
    assert texts[0] == "a" and texts[2] == "b"
    assert isinstance(texts[1], RowProblem) and "refuses the turns 'user' (not that)" in str(texts[1])
    assert renderer(picky).render_all(talks[::2]) == ["a", "b"]
    assert renderer(picky).render_all([]) == []


@pytest.mark.parametrize(
    ("template", "shown"),
    [
        (AS_MAPPING, 'weather{"city": "Ål", "days": 3}'),
        (AS_TEXT, 'weather{"city": "Ål", "days": 3}'),
        (BY_KEY, "weathercity=Ål;days=3;"),
    ],
    ids=["mapping", "text", "by key"],
)
def test_calls_in_the_form_that_the_template_reads(template, shown):
    made = renderer(template)
    talk, calls_as_text, tools_as_text = made.supported(TALK)
    assert (calls_as_text, tools_as_text) == (False, False)
    text = made.render(talk.messages, talk.tools)
    assert text.endswith(shown) and '"name": "weather"' in text
    assert TALK.messages[1]["tool_calls"][0]["function"]["arguments"] == {"city": "Ål", "days": 3}, (
        "rows are not changed"
    )


def test_what_the_template_has_no_place_for_becomes_text():
    made = renderer(tiny.CHATML)
    talk, calls_as_text, tools_as_text = made.supported(TALK)
    assert (calls_as_text, tools_as_text) == (True, True)
    text = made.render(talk.messages, talk.tools)
    assert '{"name": "weather", "arguments": {"city": "Ål", "days": 3}}' in text
    assert text.startswith("<|im_start|>system\n") and '"parameters": {"type": "object"}' in text
    assert "None" not in text
    plain = Conversation(QUESTION)
    assert made.supported(plain) == (plain, False, False)
