"""Thinking in Ollama's language: where the chat template keeps it, and what asks for it or against it."""

import pytest

from hasten.data.named_templates import named_template
from hasten.errors import CapabilityError
from hasten.export.ollama.chat_parts import talk
from hasten.export.ollama.go_template import GoTemplate
from hasten.export.ollama.prompt import ollama_prompt
from hasten.export.ollama.tool_parts import call, calling, result
from hasten.export.ollama.translate import prove, translate
from support import tiny
from support.encoders import encoder_of

ONE = call("weather", {"city": "Oslo"}, 1)
KEPT = tiny.CHATML.replace("+ message['content'] +", "+ thought + message['content'] +").replace(
    "{{ '<|im_start|>'",
    "{% set thought = '<think>' + message['reasoning_content'] + '</think>' if message['reasoning_content'] else '' %}"
    "{{ '<|im_start|>'",
)


def made_of(template, messages, think=None):
    return ollama_prompt(GoTemplate(translate(encoder_of(template)).template), messages, None, think)


def test_qwen_keeps_thinking_behind_the_last_question():
    thought = {"reasoning_content": "Hm."}
    earlier = [{**talk(a="Hi!")[0], **thought}, *talk(v="Cold?")]
    turns = [*talk(u="Hello"), *earlier, calling(ONE, content="Wait.", **thought), result("4", ONE)]
    text = made_of(named_template("qwen-3")[0], turns)
    assert "<|im_start|>assistant\nHi!<|im_end|>" in text
    assert "<|im_start|>assistant\n<think>\nHm.\n</think>\n\nWait.\n<tool_call>" in text


def test_a_request_can_turn_thinking_off():
    template = named_template("qwen-3")[0]
    off = made_of(template, talk(u="Hello"), think=False)
    assert off.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    for think in (None, True):
        assert made_of(template, talk(u="Hello"), think=think).endswith("<|im_start|>assistant\n")


def test_a_template_that_keeps_all_thinking():
    turns = [*talk(u="Hello"), {**talk(a="Hi!")[0], "reasoning_content": "Hm."}, *talk(v="And?")]
    assert "assistant\n<think>Hm.</think>Hi!<|im_end|>" in made_of(KEPT, turns)
    assert "$.IsThinkSet" not in translate(encoder_of(KEPT)).template


def test_thinking_that_is_not_proven_is_left_out_with_the_reason():
    changed = KEPT.replace("+ message['reasoning_content'] +", "+ message['reasoning_content'] | replace('Hm', 'Oh') +")
    made = translate(encoder_of(changed))
    assert ".Thinking" not in made.template
    assert any(note.startswith("Thinking has a place") and "Oh" in note for note in made.notes)


def test_templates_without_thinking_have_none():
    for template in (tiny.CHATML, named_template("qwen-2.5")[0]):
        assert ".Thinking" not in translate(encoder_of(template)).template


NUMBERED = "+ x['content'] + '</t>'", "+ x['content'] + '</t>' + loop.index | string"
BOTH = (  # thinking in every answer, tools in front
    "{% if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>{% endif %}"
    "{% for x in messages %}{% if x['role'] == 'tool' %}{{ '<t>' + x['content'] + '</t>' }}{% else %}"
    "<{{ x['role'] }}>{% if x['reasoning_content'] %}<think>{{ x['reasoning_content'] }}</think>{% endif %}"
    "{{ x['content'] or '' }}{% for call in x['tool_calls'] or [] %}<call>"
    "{\"name\": \"{{ call['function']['name'] }}\", \"arguments\": {{ call['function']['arguments'] | tojson }}"
    "{{ '}' }}{% endfor %}</s>{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_thinking_stays_where_tools_alone_are_not_proven():
    both = translate(encoder_of(BOTH))
    assert "$.Tools" in both.template and ".Thinking" in both.template
    assert NUMBERED[0] in BOTH
    made = translate(encoder_of(BOTH.replace(*NUMBERED)))
    assert ".Tools" not in made.template and "<think>{{ .Thinking }}</think>" in made.template
    assert any("takes none for this model. Why: for the turns" in note for note in made.notes)
    assert not any(note.startswith("Thinking has a place") for note in made.notes)


def test_tools_stay_where_thinking_alone_is_not_proven():
    changed = BOTH.replace("{{ x['reasoning_content'] }}", "{{ x['reasoning_content'] | replace('Hm', 'Oh') }}")
    made = translate(encoder_of(changed))
    assert "$.Tools" in made.template and ".Thinking" not in made.template
    assert any(note.startswith("Thinking has a place") and "Oh" in note for note in made.notes)
    assert not any("takes none" in note for note in made.notes)


def test_neither_is_proven_and_both_reasons_are_given():
    changed = BOTH.replace("{{ x['reasoning_content'] }}", "{{ x['reasoning_content'] | replace('Hm', 'Oh') }}")
    made = translate(encoder_of(changed.replace(*NUMBERED)))
    assert ".Tools" not in made.template and ".Thinking" not in made.template
    assert any("takes none for this model. Why: for the turns" in note for note in made.notes)
    assert any(note.startswith("Thinking has a place") and "Oh" in note for note in made.notes)


def test_thinking_behind_the_last_question_is_proven_by_an_answer_that_has_begun():
    """Qwen's, with tools that are not translated: what is left asks for thinking and says where it stands."""
    template = named_template("qwen-3")[0]
    changed = template.replace("+ '\\n</tool_response>'", "+ '\\n</tool_response>' + loop.index | string")
    assert changed != template
    made = translate(encoder_of(changed))
    assert ".Tools" not in made.template and "<think>\n{{ .Thinking }}\n</think>\n\n" in made.template
    assert "$.IsThinkSet" in made.template and not any(note.startswith("Thinking has a place") for note in made.notes)
    assert prove(encoder_of(changed), made.template) == made.proven
    with pytest.raises(CapabilityError, match="an answer that has begun"):
        prove(encoder_of(changed), made.template.replace("\n</think>\n\n", "</think>", 1))


def test_thinking_that_stands_beside_calls_alone_goes_with_them():
    late = "{% if x['reasoning_content'] and not loop.last and loop.index0 > asked.last %}"
    changed = BOTH.replace("{% if x['reasoning_content'] %}", late)
    changed = (
        "{% set asked = namespace(last=0) %}{% for x in messages %}{% if x['role'] == 'user' %}"
        "{% set asked.last = loop.index0 %}{% endif %}{% endfor %}" + changed
    )
    assert ".Thinking" in translate(encoder_of(changed)).template
    made = translate(encoder_of(changed.replace(*NUMBERED)))
    assert ".Thinking" not in made.template
    assert any(note.startswith("Thinking has a place") for note in made.notes)
