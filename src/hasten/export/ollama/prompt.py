"""The prompt that Ollama makes of messages with a template.

Two kinds of templates exist. One that names `.Messages` is run once. An older one, of `.System`, `.Prompt` and
`.Response`, is run once per exchange, and in the last run nothing behind `.Response` is written. Consecutive messages
of one role become one, and `.System` is all system texts together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hasten.export.ollama.go_syntax import Branch, Chain, Dot, Node, Operand, Pipe
from hasten.export.ollama.go_template import GoTemplate, render
from hasten.export.ollama.go_values import Shown, ShownList, Struct

_BETWEEN = "\n\n"
_RESPONSE = Chain(Dot(), ("Response",))
_SETTINGS: dict[str, Any] = {"Think": False, "ThinkLevel": "", "IsThinkSet": False}
PROPERTY = ("anyOf", "type", "items", "description", "enum", "properties", "required")
"""The keys of an argument that Ollama knows; others of a schema do not reach its templates."""


def ollama_prompt(
    template: GoTemplate,
    messages: Sequence[dict[str, Any]],
    tools: Sequence[dict[str, Any]] | None = None,
    think: bool | None = None,
) -> str:
    """The text that the model gets.

    Args:
        template: of either kind.
        messages: with role and content, and tool_calls as transformers' templates take them.
        tools: JSON schemas of functions.
        think: what the request says of thinking; None if it says nothing.

    Raises:
        ModelError: the template cannot be run on them.
    """
    settings = {**_SETTINGS, "Think": bool(think), "IsThinkSet": think is not None}
    system, turns = _collated(messages)
    names = template.names()
    if "messages" in names:
        given = {"System": system, "Messages": turns, "Tools": _tools(tools), "Response": "", **settings}
        return template.render(given)
    nodes = template.nodes
    if "response" not in names:
        nodes = (*nodes, Pipe(((_RESPONSE,),)))
    return _by_exchanges(nodes, turns, settings)


def _by_exchanges(nodes: Sequence[Node], turns: Sequence[Struct], settings: dict[str, Any]) -> str:
    written: list[str] = []
    empty = {"System": "", "Prompt": "", "Response": ""}
    held = dict(empty)

    def write() -> None:
        written.append(render(nodes, {**held, **settings}))
        held.update(empty)

    for turn in turns:
        match turn["Role"]:
            case "system":
                if held["Prompt"] or held["Response"]:
                    write()
                held["System"] = turn["Content"]
            case "user":
                if held["Response"]:
                    write()
                held["Prompt"] = turn["Content"]
            case "assistant":
                held["Response"] = turn["Content"]
            case _:
                pass
    cut = _Cut()
    written.append(render(cut.nodes(nodes), {**held, **settings}))
    return "".join(written)


class _Cut:
    """Takes out of a template what stands behind its first `.Response`."""

    def __init__(self) -> None:
        self._found = False

    def nodes(self, nodes: Sequence[Node]) -> tuple[Node, ...]:
        kept: list[Node] = []
        for node in nodes:
            if self._found:
                break
            if isinstance(node, Branch):
                body = self.nodes(node.body)
                otherwise = None if node.otherwise is None else self.nodes(node.otherwise)
                node = replace(node, body=body, otherwise=otherwise)
            elif isinstance(node, Pipe):
                self._found = any(_names_response(operand) for command in node.commands for operand in command)
            kept.append(node)
        return tuple(kept)


def _names_response(operand: Operand) -> bool:
    return isinstance(operand, Chain) and "Response" in operand.fields


def _collated(messages: Sequence[dict[str, Any]]) -> tuple[str, list[Struct]]:
    """The system text, and the messages with neighbours of one role put together."""
    turns: list[Struct] = []
    for message in messages:
        content = message.get("content") or ""
        if turns and turns[-1]["Role"] == message["role"] != "tool":
            turns[-1]["Content"] += _BETWEEN + content
        else:
            turns.append(_turn(message, content))
    system = _BETWEEN.join(message.get("content") or "" for message in messages if message["role"] == "system")
    return system, turns


def _turn(message: dict[str, Any], content: str) -> Struct:
    return Struct(
        {
            "Role": message["role"],
            "Content": content,
            "Thinking": message.get("reasoning_content") or "",
            "Images": [],
            "ToolCalls": [_call(call, place) for place, call in enumerate(message.get("tool_calls") or [])],
            "ToolName": message.get("name") or "",
            "ToolCallID": message.get("tool_call_id") or "",
        }
    )


def _call(call: dict[str, Any], place: int) -> Struct:
    function = call["function"]
    fields = {"Index": place, "Name": function["name"], "Arguments": Shown(_sorted(function["arguments"]))}
    written = {"name": function["name"], "arguments": function["arguments"]}
    return Struct({"ID": call.get("id") or "", "Function": Struct(fields, written)}, {"function": written})


def _sorted(value: Any) -> Any:
    """A value with sorted keys, as Go writes its maps."""
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


def _tools(tools: Sequence[dict[str, Any]] | None) -> ShownList:
    return ShownList(_tool(tool) for tool in tools or [])


def _tool(tool: dict[str, Any]) -> Struct:
    """A tool as Ollama keeps it: with the keys that it knows, in its order; a description is there even if empty."""
    function = tool["function"]
    parameters = function.get("parameters") or {}
    held = parameters.get("properties") or {}
    properties = {name: _property(held[name]) for name in sorted(held)}
    shape = {"Type": parameters.get("type", ""), "Required": parameters.get("required", []), "Properties": properties}
    rest = {key: parameters[key] for key in ("$defs", "items", "required") if parameters.get(key)}
    spelled = {name: item.written for name, item in properties.items()}
    parameters = {"type": shape["Type"], **rest, "properties": spelled}
    named = {"name": function["name"], "description": function.get("description", "")}
    fields = {"Name": named["name"], "Description": named["description"], "Parameters": Struct(shape, parameters)}
    inside = {**named, "parameters": parameters}
    kind = tool.get("type", "function")
    return Struct({"Type": kind, "Function": Struct(fields, inside)}, {"type": kind, "function": inside})


def _property(schema: dict[str, Any]) -> Struct:
    fields = {"Type": schema.get("type"), "Description": schema.get("description", "")}
    return Struct(fields, _known(schema))


def _known(schema: dict[str, Any]) -> dict[str, Any]:
    """What Ollama keeps of an argument's schema."""
    kept = {key: schema[key] for key in PROPERTY if schema.get(key)}
    if "properties" in kept:
        kept["properties"] = {name: _known(item) for name, item in kept["properties"].items()}
    if "anyOf" in kept:
        kept["anyOf"] = [_known(item) for item in kept["anyOf"]]
    return kept
