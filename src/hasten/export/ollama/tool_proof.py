"""Proof that a template for Ollama writes tools, calls, results and thinking as the chat template does.

Everything but the JSON of tools, of arguments and of quoted results has to be equal to the character; that JSON has to
say the same (`tool_json` has what differs). Tools of the proof have the keys that Ollama knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hasten.data.conversation import Message, RowProblem
from hasten.errors import CapabilityError
from hasten.export.ollama.chat_parts import REMEDY, Prompts, Tools, Trim, talk
from hasten.export.ollama.go_template import GoTemplate
from hasten.export.ollama.prompt import ollama_prompt
from hasten.export.ollama.proof import CONTENTS, trimmed, unequal
from hasten.export.ollama.tool_json import respelled
from hasten.export.ollama.tool_parts import call, calling, result, tool

_PLAIN = "It is 4 degrees."
_THOUGHT = "Hm. <b>\n\nYes & no: {{ .Content }}"
_NESTED = {
    "type": "object",
    "description": 'Where: <city> & "country".',
    "properties": {"names": {"type": "array", "items": {"type": "string"}}},
    "required": ["names"],
}
_WEATHER = tool("get_weather", city={"type": "string", "description": "Wo? 東京"}, unit={"enum": ["C", "F"]})
_SEARCH = tool("search", place=_NESTED, limit={"type": "integer"}, either={"anyOf": [{"type": "string"}]})
_NOTHING = tool("now")
TOOLSETS: tuple[list[dict[str, Any]], ...] = ([_WEATHER], [_SEARCH, _WEATHER, _NOTHING], [_NOTHING])
ARGUMENTS: tuple[dict[str, Any], ...] = (
    {"city": "Oslo", "unit": "C"},
    {},
    {"unit": "<F> & 'C'", "city": 'a "b"\n\\ é 東京', "deep": {"z": [1, 2.5, None, True], "a": {}}},
)


@dataclass(frozen=True)
class Probe:
    """A conversation of the proof.

    Attributes:
        name: what it tries.
        messages: its turns.
        tools: schemas, or None.
        think: what the request says of thinking.
        begun: the last turn is an answer that is to be continued; the two are compared up to its text.
    """

    name: str
    messages: list[Message]
    tools: Tools = None
    think: bool | None = None
    begun: bool = False

    @property
    def values(self) -> list[Any]:
        """What is in it as JSON."""
        made = [value for tool in self.tools or [] for value in (tool, tool["function"])]
        for message in self.messages:
            made += [call["function"]["arguments"] for call in message.get("tool_calls", ())]
            made += [message["content"]] if message["role"] == "tool" else []
        return made


def with_tools(contents: dict[str, str]) -> Iterator[Probe]:
    """Conversations with tools: every shape of turns, with contents that break templates.

    Args:
        contents: by what they are called.
    """
    for tools in TOOLSETS:
        for start in (talk(u="Hello"), talk(s="Be brief.", u="Hello"), talk(s="", u="Hello")):
            yield Probe("tools", start, tools)
            yield Probe("tools", [*start, *talk(a="Hi!", v="Weather?")], tools)
    for arguments in ARGUMENTS:
        for tools in (TOOLSETS[1], None):
            yield from (Probe("calls", messages, tools) for messages in _called(arguments, _PLAIN))
    for name, content in contents.items():
        one = call("get_weather", ARGUMENTS[0], 1)
        turns = [*talk(u="Hello"), calling(one), result(content, one)]
        yield Probe(f"a result, {name}", turns, TOOLSETS[0])
        yield Probe(f"a result, {name}", [*turns, *talk(a="Fine.", v="And?")], TOOLSETS[0])
        for start in (talk(u=content), talk(s=content, u="Hello"), talk(s="Be brief.", u=content)):
            yield Probe(f"tools, {name}", [*start, calling(one), result(_PLAIN, one)], TOOLSETS[0])
        if content.strip():
            yield Probe(f"calls, {name}", [*talk(u="Hello"), calling(one, content=content)] + turns[2:], TOOLSETS[0])


def _called(arguments: dict[str, Any], content: str) -> Iterator[list[Message]]:
    """Conversations with calls of these arguments."""
    one, two = call("get_weather", arguments, 1), call("search", {"limit": 3}, 2)
    start, later = talk(u="Weather?"), talk(a="Cold.", v="And now?")
    single = [calling(one), result(content, one)]
    for front in (start, talk(s="Be brief.", u="Weather?"), [*talk(u="Hello", a="Hi!", v="Weather?")]):
        yield [*front, *single]
        yield [*front, *single, *later]
    yield [*start, *single, calling(two), result(content, two)]
    yield [*start, *single, calling(two), result(content, two), *later]
    yield [*start, calling(one, two), result(content, one), result("None found.", two)]
    yield [*start, calling(one, two, content="Let me look."), result(content, one), result("None found.", two), *later]
    yield [*start, calling(one, content="Let me look."), result(content, one)]


def with_thinking() -> Iterator[Probe]:
    """Conversations whose answers have thinking (without blanks around it), and requests that turn it on or off."""
    thought = {"reasoning_content": _THOUGHT}
    one, two = call("get_weather", ARGUMENTS[0], 1), call("search", {"limit": 3}, 2)
    answer = {**talk(a="Hi!")[0], **thought}
    for tools in (TOOLSETS[0], None):
        yield Probe("thinking", [*talk(u="Hello"), answer, *talk(v="Weather?")], tools)
        for content in ("", "Let me look."):
            turns = [*talk(u="Weather?"), calling(one, content=content, **thought), result(_PLAIN, one)]
            yield Probe("thinking", turns, tools)
            yield Probe("thinking", [*turns, calling(two, **thought), result(_PLAIN, two)], tools)
            yield Probe("thinking", [*turns, answer, *talk(v="And?")], tools)
    for think in (True, False):
        for messages in (talk(u="Hello"), talk(s="Be brief.", u="Hello", a="Hi!", v="And?")):
            yield Probe(f"think={think}", messages, None, think)


def _thinking_alone(prompts: Prompts) -> Iterator[Probe]:
    """Those of them that have no calls. Where thinking of earlier answers is left out, none of them has thinking left,
    and only an answer that has begun shows how it is written.
    """
    yield from (probe for probe in with_thinking() if not probe.values)
    answer = {**talk(a="Hi!")[0], "reasoning_content": _THOUGHT}
    if _THOUGHT not in prompts([*talk(u="Hello"), answer, *talk(v="Weather?")]):
        yield Probe("an answer that has begun", [*talk(u="Hello"), answer], begun=True)
        earlier = talk(s="Be brief.", u="Hello", a="Hi!", v="And?")
        yield Probe("an answer that has begun", [*earlier, answer], begun=True)


def proven_with_tools(prompts: Prompts, template: GoTemplate, trims: dict[str, Trim]) -> int:
    """On how many conversations with tools or thinking both write the same; 0 where the template has neither.

    Args:
        prompts: of the chat template.
        template: Ollama's.
        trims: by role, where the chat template takes blanks off.

    Raises:
        CapabilityError: they do not; the first conversation is shown. Or the template has thinking, and none does.
    """
    names = template.names()
    probes: list[Probe] = []
    if "tools" in names:
        probes += with_tools(CONTENTS)
    if "thinking" in names:
        probes += with_thinking() if "tools" in names else _thinking_alone(prompts)
    count, thought = 0, False
    for probe in probes:
        try:
            expected = _expected(prompts, probe)
        except RowProblem:
            continue  # there is nothing to be equal to: the chat template refuses, say, two calls in a turn
        thought = thought or _THOUGHT in expected
        expected = respelled(expected, probe.values)
        made = trimmed(template, probe.messages, trims, probe.tools, probe.think)
        if not any(respelled(tried, probe.values) == expected for tried in made):
            tried = ollama_prompt(template, probe.messages, probe.tools, probe.think)
            raise unequal(probe.name, probe.messages, expected, respelled(tried, probe.values))
        count += 1
    if "thinking" in names and not thought:
        rule = "What is written around it is proven where it is written."
        raise CapabilityError("the chat template", "it writes thinking beside calls alone", rule, REMEDY)
    return count


def _expected(prompts: Prompts, probe: Probe) -> str:
    if probe.think is not None:
        return prompts.thinking(probe.messages, probe.think)
    text = prompts(probe.messages, ask=not probe.begun, tools=probe.tools)
    if not probe.begun:
        return text
    content = probe.messages[-1]["content"]
    return text[: text.rindex(content) + len(content)] if content in text else text
