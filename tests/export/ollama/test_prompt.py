"""Prompts as Ollama makes them of messages (its docs/template.md and docs/modelfile.md)."""

import pytest

from hasten.errors import ModelError
from hasten.export.ollama.go_template import GoTemplate
from hasten.export.ollama.prompt import ollama_prompt

SYSTEM = {"role": "system", "content": "S"}
TURNS = [
    {"role": "user", "content": "U1"},
    {"role": "assistant", "content": "A1"},
    {"role": "user", "content": "U2"},
]
# The two forms of one template: of messages, and of one exchange after the other.
OF_MESSAGES = "{{ range .Messages }}<{{ .Role }}>{{ .Content }}</s>{{ end }}<assistant>"
OF_EXCHANGES = (
    "{{ if .System }}<system>{{ .System }}</s>{{ end }}{{ if .Prompt }}<user>{{ .Prompt }}</s>{{ end }}"
    "<assistant>{{ .Response }}</s>"
)


def prompt(template, messages, tools=None):
    return ollama_prompt(GoTemplate(template), messages, tools)


@pytest.mark.parametrize("template", [OF_MESSAGES, OF_EXCHANGES])
def test_both_kinds_of_templates(template):
    assert prompt(template, TURNS[:1]) == "<user>U1</s><assistant>"
    assert prompt(template, [SYSTEM, *TURNS]) == ("<system>S</s><user>U1</s><assistant>A1</s><user>U2</s><assistant>")


def test_a_template_without_a_response_gets_one_at_its_end():
    assert prompt("[{{ .Prompt }}]", TURNS) == "[U1]A1[U2]"


def test_what_stands_behind_the_last_response_is_left_out():
    assert prompt(OF_EXCHANGES, TURNS[:2]) == "<user>U1</s><assistant>A1"
    nested = "{{ if .Prompt }}{{ .Prompt }}>{{ .Response }}!{{ end }}."
    assert prompt(nested, TURNS) == "U1>A1!.U2>"


def test_neighbours_of_one_role_are_one_message():
    talk = [SYSTEM, SYSTEM, TURNS[0], TURNS[0]]
    assert prompt(OF_MESSAGES, talk) == "<system>S\n\nS</s><user>U1\n\nU1</s><assistant>"


def test_system_is_all_system_texts_wherever_they_stand():
    template = "{{ .System }}|{{ range .Messages }}{{ .Role }},{{ end }}"
    later = {"role": "system", "content": "T"}
    assert prompt(template, [SYSTEM, *TURNS[:2], later, TURNS[2]]) == "S\n\nT|system,user,assistant,system,user,"


def test_calls_and_tools():
    tool = {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    talk = [TURNS[0], {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "cold"}]
    template = (
        "{{ range .Tools }}{{ .Function.Name }} {{ .Function }}{{ range $n, $p := .Function.Parameters.Properties }} "
        "{{ $n }}:{{ $p.Type }}{{ end }}\n{{ end }}{{ range .Messages }}{{ .Role }} {{ .Content }}"
        "{{ range .ToolCalls }}{{ .Function.Name }}({{ .Function.Arguments }}){{ end }}\n{{ end }}"
    )
    function = (
        '{"name":"weather","description":"Weather","parameters":{"type":"object","required":["city"],'
        '"properties":{"city":{"type":"string"}}}}'
    )
    expected = f'weather {function} city:string\nuser U1\nassistant weather({{"city":"Oslo"}})\ntool cold\n'
    assert prompt(template, talk, [tool]) == expected


def test_tools_have_the_keys_that_ollama_knows_in_its_order():
    held = {
        "default": 1,
        "title": "t",
        "properties": {"x": {"type": "string", "format": "date"}},
        "enum": [],
        "type": "object",
    }
    either = {"anyOf": [{"type": "string", "minLength": 1}]}
    shape = {"additionalProperties": False, "properties": {"b": held, "a": either}, "required": [], "type": "object"}
    tool = {"function": {"strict": True, "parameters": shape, "name": "f"}, "type": "function"}
    assert prompt("{{ range .Messages }}{{ end }}{{ json .Tools }}", TURNS, [tool]) == (
        '[{"type":"function","function":{"name":"f","description":"","parameters":{"type":"object","properties":{'
        '"a":{"anyOf":[{"type":"string"}]},"b":{"type":"object","properties":{"x":{"type":"string"}}}}}}}]'
    )


def test_arguments_are_sorted():
    call = {"type": "function", "function": {"name": "f", "arguments": {"b": "<", "a": {"d": 1, "c": 2}}}}
    talk = [TURNS[0], {"role": "assistant", "content": "", "tool_calls": [call]}]
    template = "{{ range .Messages }}{{ range .ToolCalls }}{{ json .Function.Arguments }}{{ end }}{{ end }}"
    assert prompt(template, talk) == '{"a":{"c":2,"d":1},"b":"\\u003c"}'


def test_what_a_request_says_of_thinking():
    template = "{{ range .Messages }}{{ end }}{{ .IsThinkSet }} {{ .Think }}"
    made = [ollama_prompt(GoTemplate(template), TURNS, None, think) for think in (None, True, False)]
    assert made == ["false false", "true true", "true false"]


def test_messages_have_fixed_fields():
    with pytest.raises(ModelError) as caught:
        prompt("{{ range .Messages }}{{ .Text }}{{ end }}", TURNS)
    assert caught.value.value == "no field 'Text'"
    assert "Content" in caught.value.rule
