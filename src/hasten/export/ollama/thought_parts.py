"""What a chat template writes around the thinking in front of an answer.

Templates that know thinking keep it where an answer goes on behind the results of its calls, and most leave it out of
answers to earlier questions. `enable_thinking` decides what asks for the next answer; Ollama's requests say `think`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hasten.data.conversation import Message, RowProblem
from hasten.export.ollama.chat_parts import ChatParts, Prompts, Tools, talk
from hasten.export.ollama.tool_parts import call, calling, result, tool

_U, _V, _A, _T, _R = "zqaskone", "zqasktwo", "zqanswer", "zqthought", "zqresult"
_CALL = call("zqtool", {"x": 1})
_TOOLS = [tool("zqtool", x={"type": "integer"})]


@dataclass(frozen=True)
class ThoughtParts:
    """What stands around thinking.

    Attributes:
        open, close: in front of and behind it, within an answer.
        earlier: it is written in answers to earlier questions, too.
        on, off: what asks for an answer, behind what does so otherwise, when a request says to think, or not to.
    """

    open: str
    close: str
    earlier: bool
    on: str
    off: str


def thought_parts(prompts: Prompts, parts: ChatParts) -> ThoughtParts | None:
    """The pieces around thinking; None where the template knows none, or writes it otherwise.

    Args:
        prompts: of the chat template.
        parts: what it writes around other texts.
    """
    late = _around(prompts, parts, [calling(_CALL, reasoning_content=_T, content=_A), result(_R, _CALL)], _TOOLS)
    earlier = _around(prompts, parts, [{**talk(a=_A)[0], "reasoning_content": _T}, *talk(v=_V)], None)
    around = late or earlier
    if around is None or (earlier is not None and earlier != around):
        return None
    on, off = (_asked(prompts, think) for think in (True, False))
    return ThoughtParts(*around, earlier is not None, on, off)


def _around(prompts: Prompts, parts: ChatParts, turns: Sequence[Message], tools: Tools) -> tuple[str, str] | None:
    """What stands in front of and behind the thinking of an answer."""
    try:
        text = prompts([*talk(u=_U), *turns], tools=tools).partition(_U)[2]
    except RowProblem:
        return None
    begin = parts.user[1] + parts.assistant[0]
    opened, found, rest = text.removeprefix(begin).partition(_T)
    closed, answer, _ = rest.partition(_A)
    return (opened, closed) if found and answer and text.startswith(begin) else None


def _asked(prompts: Prompts, think: bool) -> str:
    """What a request to think, or not to, adds to a prompt."""
    plain = prompts(talk(u=_U))
    try:
        text = prompts.thinking(talk(u=_U), think)
    except RowProblem:
        return ""
    return text.removeprefix(plain) if text.startswith(plain) else ""
