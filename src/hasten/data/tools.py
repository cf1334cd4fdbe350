"""Tool calls and tool schemas: read from the shapes that rows have, written as text for templates that know none.

A call is read as ``{"id": ..., "type": "function", "function": {"name": ..., "arguments": {...}}}`` (`id` where the
row has one), a schema as ``{"type": "function", "function": {...}}``. Both come bare or wrapped, as objects or as JSON.

Arrow gives every object of a column the keys of all of them and fills them with None: ``{"city": "Oslo"}`` and
``{"n": 3}`` come back as ``{"city": "Oslo", "n": None}`` and ``{"city": None, "n": 3}``. So keys that hold None are
taken out, at every depth. A null that a row really has in an argument or a schema goes with them: nothing tells it
from Arrow's filling. None inside a list is never filling and stays.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hasten.data.conversation import Conversation, RowProblem, with_flags

_PLAIN = (str, int, float, bool, type(None))
_DEEPEST = 100


def read_calls(value: Any) -> list[dict[str, Any]]:
    """Tool calls of one turn.

    Args:
        value: a call, a list of calls, JSON text of either, or None.

    Returns:
        The calls, each with `type` and `function` (`name`, and `arguments` as a mapping); empty where there are none.

    Raises:
        RowProblem: not JSON, a call without a name, or arguments that are no object.
    """
    value = parsed(value, "a tool call that is not JSON")
    if value is None:
        return []
    if not isinstance(value, (list, dict)):
        raise RowProblem("tool calls that are no list")
    return [_call(call) for call in ([value] if isinstance(value, dict) else value)]


def read_tools(value: Any) -> list[dict[str, Any]] | None:
    """Tool schemas of one row.

    Args:
        value: a list of schemas, bare or wrapped, each an object or JSON text; one schema; JSON text of either; None.

    Returns:
        Wrapped schemas; None where there are none.

    Raises:
        RowProblem: not JSON, or something that is no function schema.
    """
    value = parsed(value, "'tools' is not JSON")
    if not value:
        return None
    if not isinstance(value, (list, dict)):
        raise RowProblem("'tools' is no list")
    return [_tool(tool) for tool in ([value] if isinstance(value, dict) else value)]


def cleaned(value: Any, depth: int = 0) -> Any:
    """A value as JSON has it, without keys that hold None.

    Args:
        value: of a call or a schema.
        depth: how deep in it this value stands.

    Raises:
        RowProblem: something in it that JSON does not have, such as a date that Arrow recognised in a text; or nested
            so deeply that templates could not write it.
    """
    if depth > _DEEPEST:
        raise RowProblem(f"a tool call or schema that is nested more than {_DEEPEST} deep")
    if isinstance(value, dict):
        return {str(key): cleaned(item, depth + 1) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [cleaned(item, depth + 1) for item in value]
    if not isinstance(value, _PLAIN):
        raise RowProblem(f"a {type(value).__name__} in a tool call or schema, where JSON has none")
    return value


def calls_as_text(calls: Sequence[dict[str, Any]]) -> str:
    """Calls in the Hermes convention: name and arguments as JSON between ``<tool_call>`` tags."""
    texts = []
    for call in calls:
        function = call["function"]
        body = _json({"name": function["name"], "arguments": function["arguments"]})
        texts.append(f"<tool_call>\n{body}\n</tool_call>")
    return "\n".join(texts)


def tools_as_text(tools: Sequence[dict[str, Any]]) -> str:
    """A paragraph for the system turn: the schemas as JSON lines between ``<tools>`` tags, and how to call them."""
    schemas = "\n".join(_json(tool) for tool in tools)
    return (
        "You can call functions while you answer. These are their schemas, one a line:\n"
        f"<tools>\n{schemas}\n</tools>\n"
        "To call a function, write its name and its arguments as a JSON object between tool_call tags:\n"
        '<tool_call>\n{"name": "the name", "arguments": {"an argument": "its value"}}\n</tool_call>'
    )


def without_tool_support(conversation: Conversation, *, calls: bool, tools: bool) -> Conversation:
    """The conversation for a chat template that does not render calls, tools, or both.

    Args:
        conversation: not changed.
        calls: write calls as text after their turn's content.
        tools: write the schemas into the first system turn, or a new one in front.
    """
    messages = [_with_calls_as_text(message) if calls else message for message in conversation.messages]
    schemas = conversation.tools
    if not (tools and schemas):
        return with_flags(messages, conversation.flags, schemas)
    paragraph = tools_as_text(schemas)
    for index, message in enumerate(messages):
        if message["role"] == "system":
            content = f"{message['content']}\n\n{paragraph}" if message["content"] else paragraph
            messages[index] = {**message, "content": content}
            return with_flags(messages, conversation.flags)
    return with_flags(messages, conversation.flags).after_system(paragraph)


def _with_calls_as_text(message: dict[str, Any]) -> dict[str, Any]:
    if "tool_calls" not in message:
        return message
    text = calls_as_text(message["tool_calls"])
    content = f"{message['content']}\n{text}" if message["content"] else text
    return {**{key: value for key, value in message.items() if key != "tool_calls"}, "content": content}


def _call(call: Any) -> dict[str, Any]:
    if not isinstance(call, dict):
        raise RowProblem("a tool call that is no object")
    call = cleaned(call)
    function = call.get("function", call)
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise RowProblem("a tool call without a name")
    arguments = parsed(function.get("arguments"), "tool call arguments that are no JSON object")
    if not isinstance(arguments, (dict, type(None))):
        raise RowProblem("tool call arguments that are no JSON object")
    made = {"type": "function", "function": {"name": name, "arguments": cleaned(arguments or {})}}
    number = call.get("id")
    if not isinstance(number, (str, type(None))):
        raise RowProblem("a tool call whose 'id' is not text")
    return made if number is None else {"id": number, **made}


def _tool(tool: Any) -> dict[str, Any]:
    tool = cleaned(parsed(tool, "a tool that is not JSON"))
    given = {key: item for key, item in tool.items() if key != "type"} if isinstance(tool, dict) else {}
    wrapped = given if "function" in given else {"function": given}
    function = wrapped["function"]
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowProblem("a tool that is no function schema with a name")
    return {"type": "function", **wrapped}


def parsed(value: Any, problem: str) -> Any:
    """JSON text as its value, blank text as None; anything else as it is.

    Raises:
        RowProblem: text that is not JSON; it says `problem`.
    """
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as cause:
        raise RowProblem(problem) from cause


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
