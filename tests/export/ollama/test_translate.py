"""Chat templates in Ollama's language, against what the formats' authors render and against faults put into them."""

import datetime

import pytest

from hasten.data.named_templates import STOPS, named_template
from hasten.data.templates import ChatEncoder
from hasten.errors import CapabilityError, ModelError
from hasten.export.ollama.compose import literal
from hasten.export.ollama.go_template import GoTemplate
from hasten.export.ollama.prompt import ollama_prompt
from hasten.export.ollama.proof import conversations
from hasten.export.ollama.translate import prove, translate
from support import tiny
from support.encoders import encoder_of
from support.template_texts import EXPECTED, SYSTEM, TURNS

EVERY = len(list(conversations()))


def made_of(translated, *messages):
    return ollama_prompt(GoTemplate(translated.template), list(messages))


@pytest.mark.parametrize("name", STOPS)
def test_named_templates_render_as_their_authors_do(name):
    made = translate(encoder_of(named_template(name)[0]), adds_bos=True)
    assert made.proven >= EVERY  # and more with tools
    asked = EXPECTED[name].asked.removeprefix("<B>")
    assert made_of(made, TURNS[0]) == asked
    # What is written until the second answer begins, however the header of an answer is cut off from it.
    full = EXPECTED[name].full.removeprefix("<B>")
    prompt = made_of(made, SYSTEM, *TURNS[:3])
    assert full.startswith(prompt)
    assert full[len(prompt) :].lstrip(" ").removeprefix("<think>\n\n</think>\n\n").startswith("A2")


@pytest.mark.parametrize("name", STOPS)
def test_the_begin_token_is_written_once(name):
    template = named_template(name)[0]
    added = translate(encoder_of(template), adds_bos=True)
    written = translate(encoder_of(template), adds_bos=False)
    bos = "<B>" if EXPECTED[name].asked.startswith("<B>") else ""
    for talk in (TURNS[:1], [SYSTEM, TURNS[0]], TURNS[:3]):
        assert "<B>" not in made_of(added, *talk)
        assert made_of(written, *talk) == bos + made_of(added, *talk)


def test_whether_a_begin_token_is_added_goes_by_the_tokenizer():
    template = "{{ bos_token }}" + tiny.CHATML
    plain = encoder_of(template)
    assert translate(plain).template == translate(plain, adds_bos=False).template
    tokenizer = tiny.with_bos(plain.tokenizer)
    adding = ChatEncoder(tokenizer)
    assert adding.wants_bos
    assert translate(adding).template == translate(plain, adds_bos=True).template


def test_a_system_text_of_the_templates_own_is_found():
    made = translate(encoder_of(named_template("qwen-2.5")[0]))
    assert made.system == "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    assert made_of(made, TURNS[0]) == made_of(made, {"role": "system", "content": made.system}, TURNS[0])
    assert translate(encoder_of(named_template("chatml")[0])).system == ""
    assert translate(encoder_of(named_template("llama-3.1")[0])).system == ""  # a header that is always there


def test_an_empty_system_text_is_not_none():
    made = translate(encoder_of(named_template("qwen-2.5")[0]))
    assert made_of(made, {"role": "system", "content": ""}, TURNS[0]).startswith("<|im_start|>system\n<|im_end|>\n")
    skipping = translate(encoder_of(named_template("phi-3")[0]))
    assert made_of(skipping, {"role": "system", "content": ""}, TURNS[0]) == made_of(skipping, TURNS[0])


def test_a_system_text_in_the_last_question():
    template = (
        "{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] %}{% set m = messages[1:] %}"
        "{% else %}{% set m = messages %}{% endif %}{% for x in m %}{% if x['role'] == 'user' %}[INST] "
        "{% if loop.last and s is defined %}{{ s }}\n\n{% endif %}{{ x['content'] }}[/INST]"
        "{% else %} {{ x['content'] }}</s>{% endif %}{% endfor %}"
    )
    made = translate(encoder_of(template))
    assert made.proven == EVERY
    assert made_of(made, SYSTEM, *TURNS[:3]) == "[INST] U1[/INST] A1</s>[INST] S\n\nU2[/INST]"


def test_a_template_without_system_texts_gets_them_in_the_first_question():
    template = (
        "{% for x in messages %}{% if x['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<{{ x['role'] }}>{{ x['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    made = translate(encoder_of(template))
    assert made.proven == EVERY
    assert made_of(made, SYSTEM, *TURNS[:3]) == ("<user>S\n\nU1</s><assistant>A1</s><user>U2</s><assistant>")
    assert any("takes no system text" in note for note in made.notes)


def test_a_template_that_leaves_system_texts_out():
    template = (
        "{% for x in messages %}{% if x['role'] != 'system' %}<{{ x['role'] }}>{{ x['content'] }}</s>{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    made = translate(encoder_of(template))
    assert made_of(made, SYSTEM, TURNS[0]) == "<user>U1</s><assistant>"
    assert any("leaves system texts out" in note for note in made.notes)


def test_blanks_that_go_cannot_take_off_are_noted():
    made = translate(encoder_of(named_template("llama-3")[0]))
    (note,) = made.notes
    assert "system, user, assistant" in note and "cannot" in note
    assert translate(encoder_of(tiny.CHATML)).notes == ()


def test_thinking_that_go_cannot_take_out_is_noted():
    notes = translate(encoder_of(named_template("qwen-3")[0])).notes
    assert any("thinking" in note for note in notes)
    assert any("has begun" in note for note in notes)


def test_tools_that_have_no_place_in_ollamas_template_are_noted():
    (note,) = translate(encoder_of(named_template("chatml")[0])).notes
    assert "Tools" in note
    assert translate(encoder_of(named_template("zephyr")[0])).notes == ()


def test_a_date_is_noted_and_fixed():
    template = "{{ strftime_now('%d %B %Y') }}\n" + tiny.CHATML
    made = translate(encoder_of(template, day=datetime.date(2026, 3, 5)))
    assert made_of(made, TURNS[0]).startswith("05 March 2026\n")
    assert any("date" in note for note in made.notes)


def test_a_later_system_text_is_written_where_it_stands_or_noted():
    later = [*TURNS[:2], SYSTEM, TURNS[2]]
    assert "A1<|im_end|>\n<|im_start|>system\nS<|im_end|>" in made_of(translate(encoder_of(tiny.CHATML)), *later)
    notes = translate(encoder_of(named_template("deepseek")[0])).notes
    assert any("behind the first turn" in note for note in notes)


def test_an_answer_that_has_begun_is_left_open():
    made = translate(encoder_of(tiny.CHATML))
    assert made_of(made, *TURNS[:2]) == "<|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\nA1"


def test_texts_that_mean_something_in_go_or_in_a_modelfile():
    text = '{{ .System }} {{- x -}} {% "" """ """" \\n } }} {'
    template = tiny.CHATML.replace("'<|im_end|>\\n'", "x").replace(
        "{% for", "{{ '" + text.replace("\\", "\\\\") + "' }}{% for"
    )
    made = translate(encoder_of(template))
    assert made_of(made, TURNS[0]).startswith(text)
    assert '"""' not in made.template


@pytest.mark.parametrize(
    "text", ["", "a{", "{{{", "{{a}}", '"""x""', "\r\n", "\u00a0\u200b", "\U000e0001", "é🙂", "a\tb\n"]
)
def test_literal_texts(text):
    written = literal(text)
    assert GoTemplate(written + "{{ .X }}" + written).render({"X": "|"}) == f"{text}|{text}"
    assert all(character.isprintable() or character in "\t\n" for character in written)
    assert '"""' not in written


@pytest.mark.parametrize(
    ("template", "named"),
    [
        # It counts turns: what is written depends on more than the role.
        ("{% for x in messages %}{{ loop.index }}:{{ x['content'] }}\n{% endfor %}", "user"),
        # It changes contents.
        (tiny.CHATML.replace("message['content']", "message['content'] | upper"), "user"),
        (tiny.CHATML.replace("message['content']", "message['content'].replace('  ', ' ')"), "blanks inside"),
        (tiny.CHATML.replace("message['content']", "(message['content'] or 'nothing')"), "empty"),
        # It keeps the last question alone.
        ("{{ messages[-1]['content'] }}", "user assistant user"),
        # It has one question only.
        ("{% if messages | length > 2 %}{{ raise_exception('one turn') }}{% endif %}" + tiny.CHATML, "one turn"),
    ],
)
def test_what_cannot_be_translated_is_refused_with_what_differs(template, named):
    with pytest.raises(CapabilityError) as caught:
        translate(encoder_of(template))
    assert named in caught.value.value
    assert "raw: true" in caught.value.remedy


def test_without_a_chat_template():
    with pytest.raises(ModelError, match="no chat template"):
        translate(encoder_of(None))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<|im_start|>user\n", "<|im_start|>user"),
        ("{{ .Content }}<|im_end|>\n{{ else", "{{ .Content }}<|im_end|>{{ else"),
        ("{{ .Content }}", "{{- .Content }}"),
        ("{{ if not $last }}<|im_end|>\n{{ end }}", ""),
        ('{{ if and $last (ne .Role "assistant") }}<|im_start|>assistant\n{{ end }}', ""),
        ('(ne .Role "assistant")', '(eq .Role "assistant")'),
        ("{{ range", "<B>{{ range"),
    ],
)
def test_a_fault_in_a_template_is_found(old, new):
    encoder = encoder_of(tiny.CHATML)
    template = translate(encoder).template
    assert prove(encoder, template) == EVERY
    assert old in template
    with pytest.raises(CapabilityError, match="would become"):
        prove(encoder, template.replace(old, new, 1))


def test_the_embedded_models_own_template(demo_tokenizer):
    made = translate(ChatEncoder(demo_tokenizer))
    assert made.proven == EVERY
    assert made.system == "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert made.notes == ()
    assert made_of(made, SYSTEM, TURNS[0]) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\n"
    )
