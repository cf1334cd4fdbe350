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


# Idefics, LLaVA: content is read part by part; text is dropped or refused.
IN_PARTS = (
    "{% for m in messages %}{{ m.role + ':' }}{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}"
    "{{ '\n' }}{% endfor %}"
)
# Gemma 3 as it came out: text, but a system turn in parts.
SYSTEM_IN_PARTS = (
    "{% if messages[0].role == 'system' %}{{ messages[0].content[0].text }}{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}{{ m.role + ':' }}{{ m.content if m.content is string else m.content[0].text }}"
    "{{ '\n' }}{% endfor %}"
)


@pytest.mark.parametrize("template", [IN_PARTS, SYSTEM_IN_PARTS], ids=["all", "system"])
def test_templates_that_read_content_in_parts(template):
    made = renderer(template)
    talk = [{"role": "user", "content": "U1"}, {"role": "assistant", "content": "A1"}]
    assert made.render(talk) == "user:U1\nassistant:A1\n"
    assert "S1" in made.render([{"role": "system", "content": "S1"}, *talk])
    assert made.render_all([Conversation(talk)] * 2) == ["user:U1\nassistant:A1\n"] * 2
    assert talk[0]["content"] == "U1", "rows are not changed"


@pytest.mark.parametrize("template", [tiny.CHATML, AS_MAPPING, "{% for m in messages %}{{ m.content[0] }}{% endfor %}"])
def test_templates_that_read_text_get_text(template):
    assert "'type'" not in renderer(template).render(QUESTION)


# DeepSeek V3: calls only where content is none, arguments joined to text.
NO_CONTENT = AS_TEXT.replace("m.role + m.content }}", "m.role + (m.content or '') }}").replace(
    "m.tool_calls or []", "m.tool_calls or [] if m.content is none"
)
# R1 as llama.cpp has it: content that is not none is an answer of its own.
EXTRA = AS_MAPPING.replace("m.role + m.content }}", "m.role + ('' if m.content is none else 'says ' + m.content) }}")


@pytest.mark.parametrize("template", [NO_CONTENT, EXTRA], ids=["needed", "shorter"])
def test_absent_content_is_none_where_the_template_wants_it_so(template):
    made = renderer(template)
    talk = made.supported(TALK)[0]
    assert talk.messages[1]["content"] is None
    assert made.render(talk.messages, talk.tools).endswith('assistantweather{"city": "Ål", "days": 3}')


@pytest.mark.parametrize("template", [AS_MAPPING, AS_TEXT, BY_KEY])
def test_absent_content_stays_empty_elsewhere(template):
    assert renderer(template).supported(TALK)[0].messages[1]["content"] == ""


def test_templates_that_want_ids_of_nine_letters_and_digits():
    picky = "{% for m in messages %}{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}"
    picky += "{{ raise_exception('ids have 9 letters') }}{% endif %}{% endfor %}{% endfor %}" + AS_MAPPING
    made = renderer(picky)
    assert made.supported(TALK)[1:] == (False, False)
    short = Conversation([*QUESTION, {**TALK.messages[1], "tool_calls": [{**CALL, "id": "c1"}]}], [SCHEMA])
    with pytest.raises(RowProblem, match="ids have 9 letters"):
        made.render(short.messages, short.tools)


def test_tools_may_have_a_template_of_their_own():
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = {"default": tiny.CHATML, "tool_use": "{{ tools | length }}" + AS_MAPPING}
    made = Renderer(tokenizer)
    assert made.supported(TALK)[1:] == (False, False)
    talk, calls, _ = made.supported(Conversation(TALK.messages))
    assert calls and "<tool_call>" in talk.messages[1]["content"], "without tools it is the default one"


def test_tools_as_text_go_into_the_question_where_no_system_turn_is_taken():
    no_system = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + tiny.CHATML
    talk, _, tools = renderer(no_system).supported(TALK)
    assert tools and [message["role"] for message in talk.messages] == ["user", "assistant"]
    assert talk.messages[0]["content"].endswith("\n\nhi") and '"name": "weather"' in talk.messages[0]["content"]


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
