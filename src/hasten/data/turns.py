"""Reading turns: roles of any naming, content as text, calls, and which turns a row wants learnt.

Turns come as ``{"role", "content"}`` or as ``{"from", "value"}``, with the names of several data sets for one role. A
name that is not known is refused and not guessed: it would stand in the header of a turn, and the model would learn it.
"""

from __future__ import annotations

from typing import Any

from hasten.data.conversation import Conversation, Message, RowProblem, with_flags
from hasten.data.tools import parsed, read_calls

_NAMES = {
    "system": "system developer",
    "user": "user human input prompter",
    "assistant": "assistant gpt model bot chatgpt bing output function_call",
    "tool": "tool observation function function_response ipython",
}
ROLE_ALIASES = {alias: role for role, aliases in _NAMES.items() for alias in aliases.split()}
"""Name in a row, in lower case -> role. A turn of `function_call` is an assistant's whose text is a call as JSON."""

_MAY_BE_EMPTY = ("system", "tool")
_KEPT = ("tool_call_id", "name", "reasoning_content")
_TEXT_PARTS = ("text", "input_text", "output_text")
_OTHER_PARTS = {"image": "an image", "audio": "audio", "video": "a video", "file": "a file"}


def read_turns(turns: Any) -> Conversation:
    """Turns of either naming, whoever speaks in them.

    Args:
        turns: a list of objects, or JSON text of one, as a table's cell has it.

    Raises:
        RowProblem: no turns, an unknown role, content that is missing, empty or no text, or a faulty call or flag.
    """
    turns = parsed(turns, "messages that are text, and not JSON")
    if not isinstance(turns, list) or not turns:
        raise RowProblem("no messages")
    read = [_read_turn(turn) for turn in turns]
    return with_flags([message for message, _ in read], [flag for _, flag in read])


def require_assistant(conversation: Conversation) -> None:
    """Refuse a conversation that has nothing to learn.

    Raises:
        RowProblem: there is no assistant turn.
    """
    if all(message["role"] != "assistant" for message in conversation.messages):
        raise RowProblem("no assistant turn")


def read_text(value: Any, name: str) -> str:
    """A value that must be text, named for the problem.

    Raises:
        RowProblem: it is None, or no text.
    """
    if value is None:
        raise RowProblem(f"None in '{name}'")
    if not isinstance(value, str):
        raise RowProblem(f"'{name}' is not text")
    return value


def read_filled(value: Any, name: str) -> str:
    """A value that must be text and not blank.

    Raises:
        RowProblem: it is None, no text, or blank.
    """
    text = read_text(value, name)
    if not text.strip():
        raise RowProblem(f"empty '{name}'")
    return text


def neighbours_merged(conversation: Conversation) -> Conversation:
    """Neighbouring turns of one role become one, for templates that insist on alternation.

    Texts are joined with a blank line. Calls and tool results stay apart, as do turns of different names, and a turn
    that begins with thinking stays apart from the one before: its thinking would move in front of that one's text.

    Raises:
        RowProblem: of two turns that would become one, only one is marked as learnt, or as not learnt.
    """
    messages: list[Message] = []
    flags: list[bool | None] = []
    for message, flag in zip(conversation.messages, conversation.flags, strict=True):
        if messages and _joinable(messages[-1], message):
            _require_agreement(flags[-1], flag, f"neighbouring turns of role '{message['role']}'")
            texts = [text for text in (messages[-1]["content"], message["content"]) if text]
            messages[-1] = {**messages[-1], "content": "\n\n".join(texts)}
        else:
            messages.append(message)
            flags.append(flag)
    return with_flags(messages, flags, conversation.tools)


def system_folded(conversation: Conversation) -> Conversation:
    """A system turn goes in front of the user turn that follows it, for templates without a system role.

    Raises:
        RowProblem: no user turn follows, or only one of the two is marked as learnt, or as not learnt.
    """
    messages: list[Message] = []
    flags: list[bool | None] = []
    waiting: list[str] = []
    marks: list[bool | None] = []
    for message, flag in zip(conversation.messages, conversation.flags, strict=True):
        if message["role"] == "system":
            waiting.append(message["content"])
            marks.append(flag)
            continue
        if message["role"] == "user" and waiting:
            for mark in marks:
                _require_agreement(mark, flag, "a system turn and its user turn")
            texts = [text for text in (*waiting, message["content"]) if text]
            message = {**message, "content": "\n\n".join(texts)}
            waiting, marks = [], []
        messages.append(message)
        flags.append(flag)
    if waiting:
        raise RowProblem("no user turn follows the system turn, which can therefore not be folded into one")
    return with_flags(messages, flags, conversation.tools)


def _read_turn(turn: Any) -> tuple[Message, bool | None]:
    if not isinstance(turn, dict):
        raise RowProblem("a message that is no object")
    alias = str(turn.get("role") or turn.get("from") or "").lower()
    role = ROLE_ALIASES.get(alias)
    if role is None:
        raise RowProblem(f"unknown role '{_shortened(turn.get('role') or turn.get('from') or '')}'")
    spoken = turn["content"] if turn.get("content") is not None else turn.get("value")
    if alias == "function_call":
        content, calls = "", read_calls(spoken)
        if not calls:
            raise RowProblem("a function_call without a call")
    else:
        calls = read_calls(turn.get("tool_calls") or turn.get("function_call"))
        content = "" if spoken is None and calls else _content(spoken)
    if calls and role != "assistant":
        raise RowProblem(f"tool calls in a turn of role '{role}'")
    if not (calls or role in _MAY_BE_EMPTY or content.strip()):
        raise RowProblem("empty content")
    message: Message = {"role": role, "content": content}
    if calls:
        message["tool_calls"] = calls
    message |= {key: read_text(turn[key], key) for key in _KEPT if turn.get(key) is not None}
    return message, _flag(turn)


def _content(value: Any) -> str:
    return "".join(map(_part, value)) if isinstance(value, list) else read_text(value, "content")


def _part(part: Any) -> str:
    if not isinstance(part, dict):
        raise RowProblem("a part of the content that is no object")
    kind = str(part.get("type") or "text")
    if kind in _TEXT_PARTS:
        return read_text(part.get("text"), "content")
    found = next((noun for word, noun in _OTHER_PARTS.items() if word in kind), f"a part of type '{_shortened(kind)}'")
    raise RowProblem(f"content has {found}; only text is trained")


def _flag(turn: dict[str, Any]) -> bool | None:
    train, weight = turn.get("train"), turn.get("weight")
    if not isinstance(train, (bool, type(None))):
        raise RowProblem("'train' is neither true nor false")
    if weight is None:
        return train
    if weight not in (0, 1):
        raise RowProblem("'weight' is neither 0 nor 1")
    if train is not None and train != bool(weight):
        raise RowProblem("'train' and 'weight' disagree")
    return bool(weight)


def _shortened(value: Any) -> str:
    """One short line of a text that stands in a message."""
    text = " ".join(str(value).split())
    return text if len(text) <= 40 else f"{text[:37]}..."


def _joinable(first: Message, second: Message) -> bool:
    return (
        first["role"] == second["role"] != "tool"
        and "tool_calls" not in first
        and "tool_calls" not in second
        and "reasoning_content" not in second
        and first.get("name") == second.get("name")
    )


def _require_agreement(first: bool | None, second: bool | None, what: str) -> None:
    if first != second:
        raise RowProblem(f"{what} do not agree on being learnt, so they cannot become one turn")
