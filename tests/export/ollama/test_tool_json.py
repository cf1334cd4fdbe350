"""JSON in texts: found as a whole, and compared by what it says."""

from hasten.export.ollama.tool_json import respelled, spans

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"b": [1, 2.5], "a": "<é>"}}}


def test_the_outermost_value_is_found_from_left_to_right():
    inner = TOOL["function"]
    text = 'x {y} {"name":"f", "parameters": {"a": "<é>", "b": [1,2.5]}} "f" { {"function": ' + "{}}"
    assert [text[start:stop][:8] for start, stop, _ in spans(text, [TOOL, inner])] == ['{"name":']
    whole = '{"function": {"name": "f", "parameters": {"a": "\\u003cé>", "b": [1, 2.5]}}, "type": "function"}'
    assert list(spans(f"{{{whole}", [inner, TOOL])) == [(1, 1 + len(whole), 1)]


def test_spellings_of_one_value_are_one():
    ours, theirs = '<t>{"a": 1, "b": "<\\u00e9>"}</t>', '<t>{"b":"\\u003cé\\u003e","a":1}</t>'
    assert respelled(ours, [{"a": 1, "b": "<é>"}]) == respelled(theirs, [{"a": 1, "b": "<é>"}])


def test_everything_else_is_compared_as_it_is():
    value = {"a": 1}
    for other in ('<t>{"a": 2}</t>', '<t>{"a": true}</t>', '<t> {"a": 1}</t>', '<t>{"a": 1} {"b": 1}</t>'):
        assert respelled(other, [value]) != respelled('<t>{"a": 1}</t>', [value])
    assert respelled('{"c": 1}', [value]) == '{"c": 1}'


def test_texts_are_values_too():
    assert respelled('{"x": "a\\nb"}', ["a\nb"]) == respelled('{"x": "a\\u000ab"}', ["a\nb"])
    assert respelled('say "a" and "', ["a"]) == 'say "a" and "'


def test_braces_without_end_are_text():
    assert list(spans('{"a":' * 20000, [{"a": 1}], 0)) == []
