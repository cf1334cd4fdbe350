"""What a chat template writes around tools, their calls and their results, found as `chat_parts` finds the rest.

Tools stand in front of the first question's text:

    [s, tools, u]     a front of text, the system text, the tools and a part between any two of them
    [u, calls, results, a]     first name then arguments between name then arguments last open result between result

Templates that put them elsewhere (Mistral's: the last question), write identifiers or names of results, or spell
arguments otherwise than as JSON are not translated: a reason is given. What is found is proven by `tool_proof`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hasten.data.conversation import Message, RowProblem
from hasten.export.ollama.chat_parts import ChatParts, Prompts, talk
from hasten.export.ollama.tool_json import spans

_S, _U, _V, _A = "zqsystem", "zqaskone", "zqasktwo", "zqanswer"
_RESULTS = ("zqresultone", "zqresulttwo")
_ODD = 'zq "odd" {1}\n<é>'
Piece = tuple[Literal["text", "system", "tools"], str]
Front = tuple[Piece, ...]


class Untranslated(Exception):
    """Tools cannot be translated; the reason is the whole message."""


@dataclass(frozen=True)
class ToolParts:
    """What stands around tools.

    Attributes:
        fronts: what a conversation with tools begins with, up to the first question: without a system text, with one,
            and with an empty one.
        headed: a question's header is part of `fronts`.
        whole: a tool is written with its type; otherwise its function alone.
        between_tools: between two tools.
        first, name, between, last: in front of the name of the first call, between a name and its arguments, between
            the arguments and the next name, behind the last arguments.
        lead: between the text of an answer and its calls; None where the text is left out.
        open, next, close: in front of the first result, between two, behind the last.
        quoted: results are written as JSON.
        single: the template takes one call a turn.
    """

    fronts: tuple[Front, Front, Front]
    headed: bool
    whole: bool
    between_tools: str
    first: str
    name: str
    between: str
    last: str
    lead: str | None
    open: str
    next: str
    close: str
    quoted: bool
    single: bool


def tool(name: str, **properties: Any) -> dict[str, Any]:
    """A tool's schema, with the keys that Ollama knows and no other (it leaves an empty `required` out)."""
    shape = {"type": "object", "properties": properties, **({"required": list(properties)} if properties else {})}
    return {"type": "function", "function": {"name": name, "description": f"Does {name}.", "parameters": shape}}


def call(name: str, arguments: dict[str, Any], number: int = 0) -> dict[str, Any]:
    """A call, with an identifier of nine characters, as Mistral's templates take them."""
    return {"id": f"zqid{number:05d}", "type": "function", "function": {"name": name, "arguments": arguments}}


def calling(*calls: dict[str, Any], content: str = "", **more: Any) -> Message:
    """A turn of the assistant with calls."""
    return {"role": "assistant", "content": content, "tool_calls": list(calls), **more}


def result(content: str, made: dict[str, Any]) -> Message:
    """What a tool answered to a call."""
    name = made["function"]["name"]
    return {"role": "tool", "content": content, "name": name, "tool_call_id": made["id"]}


_TOOLS = [tool("zqtoolone", x={"type": "string"}), tool("zqtooltwo", y={"type": "integer"})]
_CALLS = [call("zqtoolone", {"x": "zqxone"}, 1), call("zqtooltwo", {"y": 7}, 2)]


def tool_parts(prompts: Prompts, parts: ChatParts) -> ToolParts:
    """The pieces around tools.

    Args:
        prompts: of the chat template.
        parts: what it writes around other texts.

    Raises:
        Untranslated: they do not fall into these pieces.
        RowProblem: the chat template refuses a conversation with tools.
    """
    if parts.system not in ("own", "first"):
        raise Untranslated("its system text does not stand in front")
    fronts, whole, between_tools, headed = _fronts(prompts, parts)
    first, name, between, last, single = _calls(prompts, parts)
    opened, following, close, quoted = _results(prompts, parts, last)
    return ToolParts(
        fronts=fronts,
        headed=headed,
        whole=whole,
        between_tools=between_tools,
        first=first,
        name=name,
        between=between,
        last=last,
        lead=_lead(prompts, parts, first),
        open=opened,
        next=following,
        close=close,
        quoted=quoted,
        single=single,
    )


def _fronts(prompts: Prompts, parts: ChatParts) -> tuple[tuple[Front, Front, Front], bool, str, bool]:
    """The fronts, whether tools are whole, what is between two of them, and whether fronts hold a header."""
    without, given, empty = (_front(prompts, one) for one in (talk(u=_U), talk(s=_S, u=_U), talk(s="", u=_U)))
    (*_, whole, between), header = without, parts.user[0]
    if not without[1:] == given[1:] == empty[1:]:
        raise Untranslated("how tools are written depends on the system text")
    fronts = (without[0], given[0], empty[0])
    if not all(front[-1][0] == "text" and front[-1][1].endswith(header) for front in fronts):
        return fronts, whole, between, True
    return (
        (_headless(fronts[0], header), _headless(fronts[1], header), _headless(fronts[2], header)),
        whole,
        between,
        False,
    )


def _headless(front: Front, header: str) -> Front:
    """A front without the header of the question behind it."""
    return (*front[:-1], ("text", front[-1][1].removesuffix(header)))


def _front(prompts: Prompts, messages: Sequence[Message]) -> tuple[Front, bool, str]:
    """What a conversation with tools begins with, whether tools are whole in it, and what is between two of them."""
    front = prompts(messages, tools=_TOOLS).partition(_U)[0]
    values = [*_TOOLS, *(tool["function"] for tool in _TOOLS)]
    found = list(spans(front, values))
    if [which % 2 for *_, which in found] != [0, 1] or found[0][2] // 2 != found[1][2] // 2:
        raise Untranslated("tools are not written once each, as JSON, in front of the first question")
    (start, middle, which), (again, stop, _) = found
    pieces: list[Piece] = [*_texts(front[:start]), ("tools", ""), *_texts(front[stop:])]
    systems = sum(kind == "system" for kind, _ in pieces)
    if systems != any(message["content"] == _S for message in messages):
        raise Untranslated("the system text is not written once beside tools")
    return tuple(pieces), which < len(_TOOLS), front[middle:again]


def _texts(text: str) -> list[Piece]:
    before, found, behind = text.partition(_S)
    return [("text", before), ("system", ""), ("text", behind)] if found else [("text", text)]


def _calls(prompts: Prompts, parts: ChatParts) -> tuple[str, str, str, str, bool]:
    """What stands around the calls of a turn, and whether a turn has one alone."""
    calls = _CALLS
    try:
        text = _behind(prompts, parts, _answered(calls))
    except RowProblem:
        calls = _CALLS[:1]
        text = _behind(prompts, parts, _answered(calls))
    pieces, place = [], 0
    for made in calls:
        function = made["function"]
        start = text.find(function["name"], place)
        stop = start + len(function["name"])
        found = next(spans(text, [function["arguments"]], max(stop, 0)), None)
        if start < 0 or found is None or any(other["function"]["name"] in text[stop : found[0]] for other in calls):
            raise Untranslated("calls are not written as a name and arguments in JSON behind it")
        pieces += [text[place:start], text[stop : found[0]]]
        place = found[1]
    if any(made["id"] in text for made in calls):
        raise Untranslated("the identifiers of calls are written, which Ollama does not give to every template")
    end = parts.assistant[1]
    last, found_end, _ = text[place:].partition(end)
    if not end or not found_end or _RESULTS[0] in last:
        raise Untranslated("a turn with calls ends differently from others")
    if len(calls) == 1:
        return pieces[0], pieces[1], last + pieces[0], last + end, True
    if pieces[1] != pieces[3]:
        raise Untranslated("calls of one turn are written differently")
    return pieces[0], pieces[1], pieces[2], last + end, False


def _lead(prompts: Prompts, parts: ChatParts, first: str) -> str | None:
    """What stands between an answer's text and its calls."""
    text = _behind(prompts, parts, _answered(_CALLS[:1], _A))
    start = text.find(_CALLS[0]["function"]["name"])
    if _A not in text:
        if text[:start] != first:
            raise Untranslated("calls beside a text that is left out are written differently")
        return None
    before, _, lead = text[:start].partition(_A)
    if before or not lead.endswith(first):
        raise Untranslated("the text of an answer does not stand in front of its calls")
    return lead.removesuffix(first)


def _results(prompts: Prompts, parts: ChatParts, last: str) -> tuple[str, str, str, bool]:
    """What stands in front of, between and behind the results of calls, and whether these are JSON."""
    one, two = _CALLS
    odd = _behind(prompts, parts, [calling(one), result(_ODD, one)])
    quoted = json.dumps(_ODD, ensure_ascii=False) in odd
    if not quoted and _ODD not in odd:
        raise Untranslated("results are written neither as they are nor as JSON")
    turns = [calling(one), result(_RESULTS[0], one), result(_RESULTS[1], two), *talk(a=_A, v=_V)]
    rest = _behind(prompts, parts, turns).partition(last)[2]
    pieces = []
    for content in (*_RESULTS, _A):
        mark = json.dumps(content) if quoted and content != _A else content
        piece, found, rest = rest.partition(mark)
        if not found:
            raise Untranslated("results are not written once each, in their order")
        pieces.append(piece)
    opened, following, close = pieces
    if not close.endswith(parts.assistant[0]):
        raise Untranslated("an answer behind results begins differently")
    if any(made["function"]["name"] in piece or made["id"] in piece for made in _CALLS for piece in pieces):
        raise Untranslated("results are written with the names or identifiers of their calls")
    return opened, following, close.removesuffix(parts.assistant[0]), quoted


def _answered(calls: Sequence[dict[str, Any]], content: str = "") -> list[Message]:
    """A turn with calls, and their results."""
    results = [result(text, made) for text, made in zip(_RESULTS, calls, strict=False)]
    return [calling(*calls, content=content), *results]


def _behind(prompts: Prompts, parts: ChatParts, turns: Sequence[Message]) -> str:
    """What is written behind the header of the answer to a first question."""
    text = prompts([*talk(u=_U), *turns], tools=_TOOLS).partition(_U)[2]
    begin = parts.user[1] + parts.assistant[0]
    if not text.startswith(begin):
        raise Untranslated("a turn with calls begins differently from others")
    return text.removeprefix(begin)
