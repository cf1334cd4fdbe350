"""Tools in Ollama's language: what is found around them, what is proven, and what is left out with its reason."""

import functools

import pytest

from hasten.data.named_templates import named_template
from hasten.errors import CapabilityError
from hasten.export.ollama.chat_parts import talk
from hasten.export.ollama.go_template import GoTemplate
from hasten.export.ollama.prompt import ollama_prompt
from hasten.export.ollama.proof import CONTENTS, conversations
from hasten.export.ollama.tool_parts import call, calling, result, tool
from hasten.export.ollama.tool_proof import with_thinking, with_tools
from hasten.export.ollama.translate import prove, translate
from support.encoders import encoder_of

PLAIN = len(list(conversations()))
TOOLS = [tool("weather", city={"type": "string"}), tool("now")]
ONE, TWO = call("weather", {"city": "Oslo"}, 1), call("now", {}, 2)
LOOP = [*talk(u="Cold?"), calling(ONE, TWO), result("4", ONE), result("noon", TWO)]
HEADED = (  # tools in the first question, results as JSON, one call a turn
    "{% set seen = namespace(one=false) %}{% for x in messages %}{% if x['role'] == 'user' %}<u>"
    "{% if tools and not seen.one %}{% set seen.one = true %}{% for t in tools %}"
    "{{ t['function'] | tojson(indent=2) }}\n{% endfor %}{% endif %}{{ x['content'] }}</s>"
    "{% elif x['role'] == 'tool' %}<t>{{ x['content'] | tojson }}</s>"
    "{% elif x['role'] == 'system' %}<s>{{ x['content'] }}</s>"
    "{% else %}<a>{% if x['tool_calls'] %}{% if x['tool_calls'] | length > 1 %}{{ raise_exception('one') }}{% endif %}"
    "{\"name\": \"{{ x['tool_calls'][0]['function']['name'] }}\", \"parameters\": "
    "{{ x['tool_calls'][0]['function']['arguments'] | tojson }}{{ '}' }}{% else %}{{ x['content'] }}{% endif %}</s>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


@functools.cache
def translated(template):
    """The encoder of a template and its translation: once for all tests of it."""
    encoder = encoder_of(template)
    return encoder, translate(encoder)


def made_of(template, messages, tools=None, think=None):
    return ollama_prompt(GoTemplate(template), messages, tools, think)


@pytest.mark.parametrize("name", ["chatml", "qwen-2.5", "qwen-3", "llama-3.1"])
def test_named_templates_with_tools(name):
    encoder, made = translated(named_template(name)[0])
    assert "$.Tools" in made.template and ".ToolCalls" in made.template
    tried = len(list(with_tools(CONTENTS))) + (len(list(with_thinking())) if name == "qwen-3" else 0)
    refused = 20 if name == "llama-3.1" else 0  # two calls a turn, or fewer
    assert PLAIN + tried - refused <= made.proven <= PLAIN + tried
    assert prove(encoder, made.template) == made.proven
    assert any("Ollama's JSON" in note and "anyOf" in note for note in made.notes)
    assert any("one call a turn" in note for note in made.notes) == (name == "llama-3.1")


def test_a_loop_of_calls_is_written_as_qwen_does_but_for_jsons_spelling():
    template = translated(named_template("qwen-2.5")[0])[1].template
    text = made_of(template, LOOP, TOOLS)
    assert (
        '<tools>\n{"type":"function","function":{"name":"weather","description":"Does weather.","parameters":{"type":'
        '"object","required":["city"],"properties":{"city":{"type":"string"}}}}}\n{"type":"function","function":'
        '{"name":"now","description":"Does now.","parameters":{"type":"object","properties":{}}}}\n</tools>\n'
    ) in text
    assert text.endswith(
        '<|im_start|>assistant\n<tool_call>\n{"name": "weather", "arguments": {"city":"Oslo"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n4\n</tool_response>\n<tool_response>\nnoon\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert "# Tools" not in made_of(template, LOOP) and "<tool_call>" in made_of(template, LOOP)


def test_tools_in_the_first_question():
    encoder = encoder_of(HEADED)
    made = translate(encoder)
    assert made.proven > PLAIN
    single = [*talk(s="Brief.", u="Cold?"), calling(ONE), result('4 "C"', ONE)]
    assert made_of(made.template, single, TOOLS[1:]) == (
        '<s>Brief.</s><u>{"name":"now","description":"Does now.","parameters":{"type":"object","properties":{}}}\n'
        'Cold?</s><a>{"name": "weather", "parameters": {"city":"Oslo"}}</s><t>"4 \\"C\\""</s><a>'
    )
    assert any("Results are written as JSON, too" in note for note in made.notes)


def test_the_first_text_under_calls_is_their_mark():
    """Ollama finds calls in an answer by the first text under `if .ToolCalls`."""
    template = translated(named_template("qwen-3")[0])[1].template
    before, _, inside = template.partition("{{ if .ToolCalls }}")
    assert inside.startswith('{{ range $n, $_ := .ToolCalls }}{{ if eq $n 0 }}<tool_call>\n{"name": "{{ else }}')
    assert "if .ToolCalls" not in before and "and .ToolCalls" not in before


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("call['function']['name']", "call['id'] + call['function']['name']", "identifiers"),
        ("call['function']['arguments'] | tojson", "call['function']['arguments'] | items | list", "place for calls"),
        ("tool | tojson", "tool['function']['name']", "in front of the first question"),
        ("+ x['content'] + '</t>'", "+ x['name'] + x['content'] + '</t>'", "names or identifiers"),
        ("+ x['content'] + '</t>'", "+ x['content'] | upper + '</t>'", "neither as they are nor as JSON"),
        ("+ x['content'] + '</t>'", "+ x['content'] + '</t>' + loop.index | string", "would become"),
    ],
)
def test_tools_that_are_not_translated_are_left_out_with_the_reason(old, new, reason):
    template = (
        "{% if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>{% endif %}"
        "{% for x in messages %}{% if x['role'] == 'tool' %}{{ '<t>' + x['content'] + '</t>' }}{% else %}"
        "<{{ x['role'] }}>{{ x['content'] or '' }}{% for call in x['tool_calls'] or [] %}<call>"
        "{\"name\": \"{{ call['function']['name'] }}\", \"arguments\": {{ call['function']['arguments'] | tojson }}"
        "{{ '}' }}{% endfor %}</s>{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    assert "$.Tools" in translated(template)[1].template
    assert old in template
    made = translate(encoder_of(template.replace(old, new)))
    assert made.proven == PLAIN
    assert "Tools" not in made.template
    (note,) = [note for note in made.notes if "takes none" in note]
    assert reason in note


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{{ json . }}", "{{ json .Function }}"),
        ("{{ json .Function.Arguments }}", "{{ .Function.Name }}"),
        ('"arguments": ', '"arguments":'),
        ("</tool_response>", "</tool_response >"),
        ("{{ if or (not $.Tools) (gt $i 0) }}", "{{ if true }}"),
        ("{{ $results = false }}", ""),
        ("(gt $i $question)", "(gt $i 0)"),
        ("(not $.Think)", "$.Think"),
    ],
)
def test_a_fault_in_what_is_around_tools_is_found(old, new):
    encoder, made = translated(named_template("qwen-3")[0])
    template = made.template
    assert old in template
    with pytest.raises(CapabilityError, match="would become"):
        prove(encoder, template.replace(old, new, 1))
