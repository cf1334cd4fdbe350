"""A chat template in Ollama's language, proven by rendering both on many conversations.

Jinja is not read: the Go template is built of the texts that the chat template writes around contents
(`chat_parts`), tools (`tool_parts`) and thinking (`thought_parts`). Whether that is all it does is then tried
(`proof`, `tool_proof`). Tools and thinking that are not proven are left out; all else has to be.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hasten.data.conversation import Conversation, Message, RowProblem
from hasten.data.templates import ChatEncoder
from hasten.errors import CapabilityError
from hasten.export.ollama.chat_parts import REMEDY, ChatParts, Prompts, chat_parts, talk, trims_of
from hasten.export.ollama.compose import written
from hasten.export.ollama.go_template import GoTemplate
from hasten.export.ollama.prompt import PROPERTY, ollama_prompt
from hasten.export.ollama.proof import proven
from hasten.export.ollama.thought_parts import ThoughtParts, thought_parts
from hasten.export.ollama.tool_parts import ToolParts, Untranslated, tool_parts
from hasten.export.ollama.tool_proof import proven_with_tools

_THOUGHT, _ANSWER = "zqthought", "zqanswer"
_FUNCTION = {"name": "zqtool", "description": "a", "parameters": {"type": "object", "properties": {}}}
_TOOLS = [{"type": "function", "function": _FUNCTION}]
_JSON = (
    "Tools and the arguments of calls are written in Ollama's JSON: the same values, without blanks, with <, > and & "
    f"escaped, keys in Ollama's order, and of a tool's arguments only what Ollama knows ({', '.join(PROPERTY)})."
)


@dataclass(frozen=True)
class Translated:
    """A chat template for Ollama.

    Attributes:
        template: in Go's language.
        system: the system text that it writes where a conversation has none; empty if there is none.
        notes: what is not as in the chat template, one sentence each.
        proven: on how many conversations both wrote the same.
    """

    template: str
    system: str
    notes: tuple[str, ...]
    proven: int


def translate(encoder: ChatEncoder, adds_bos: bool | None = None) -> Translated:
    """The chat template of a tokenizer for Ollama.

    Args:
        encoder: the tokenizer.
        adds_bos: the GGUF file says that a begin token is put in front of every text, so the template writes none;
            None goes by what the tokenizer does.

    Raises:
        ModelError: there is no chat template.
        CapabilityError: it could not be translated; the first conversation that differs is shown.
    """
    encoder.require_template()
    try:
        prompts = _prompts(encoder, adds_bos)
        parts = chat_parts(prompts)
        made = _proven(prompts, parts)
    except RowProblem as problem:
        raise _not_rendered(problem) from problem
    return Translated(made.text, parts.default, tuple(_notes(encoder, prompts, parts, made)), made.count)


@dataclass(frozen=True)
class _Proven:
    """A template, on how many conversations it is proven, its pieces around tools, and why it lacks some."""

    text: str
    count: int
    tools: ToolParts | None = None
    no_tools: str = ""
    no_thinking: str = ""


def _proven(prompts: Prompts, parts: ChatParts) -> _Proven:
    """The template with both tools and thinking, one of them or neither: the first that is proven.

    Tools come before thinking: they are more conversations.
    """
    no_tools, no_thinking, tools = "", "", None
    try:
        tools = tool_parts(prompts, parts)
    except (Untranslated, RowProblem) as problem:
        no_tools = str(problem)
    thoughts = thought_parts(prompts, parts)
    if tools is not None and thoughts is not None:
        try:
            return _Proven(*_counted(prompts, parts, tools, thoughts), tools)
        except CapabilityError as problem:
            no_thinking = problem.value
    if tools is not None:
        try:
            return _Proven(*_counted(prompts, parts, tools), tools, no_thinking=no_thinking)
        except CapabilityError as problem:
            no_tools = problem.value
    if thoughts is not None:
        try:
            return _Proven(*_counted(prompts, parts, None, thoughts), None, no_tools)
        except CapabilityError as problem:
            no_thinking = problem.value
    return _Proven(*_counted(prompts, parts), None, no_tools, no_thinking)


def _counted(
    prompts: Prompts, parts: ChatParts, tools: ToolParts | None = None, thoughts: ThoughtParts | None = None
) -> tuple[str, int]:
    """The template of these parts, and on how many conversations it is proven."""
    text = written(parts, tools, thoughts)
    template = GoTemplate(text)
    return text, proven(prompts, template, parts.trims) + proven_with_tools(prompts, template, parts.trims)


def prove(encoder: ChatEncoder, template: str, adds_bos: bool | None = None) -> int:
    """On how many conversations a template for Ollama writes what the chat template writes.

    Args:
        encoder: the tokenizer.
        template: in Go's language.
        adds_bos: as in `translate`.

    Raises:
        ModelError: there is no chat template, or the other is none.
        CapabilityError: the two differ; the first conversation is shown.
    """
    encoder.require_template()
    try:
        prompts = _prompts(encoder, adds_bos)
        parsed, trims = GoTemplate(template), trims_of(prompts)
        return proven(prompts, parsed, trims) + proven_with_tools(prompts, parsed, trims)
    except RowProblem as problem:
        raise _not_rendered(problem) from problem


def _prompts(encoder: ChatEncoder, adds_bos: bool | None) -> Prompts:
    return Prompts(encoder, encoder.wants_bos if adds_bos is None else adds_bos)


def _not_rendered(problem: RowProblem) -> CapabilityError:
    rule = "It is translated from what it writes for user, assistant and system turns."
    return CapabilityError("the chat template", str(problem), rule, REMEDY)


def _notes(encoder: ChatEncoder, prompts: Prompts, parts: ChatParts, made: _Proven) -> Iterator[str]:
    template, tools = GoTemplate(made.text), made.tools
    if roles := [role for role, trim in parts.trims.items() if trim]:
        yield (
            f"Blanks around the texts of {', '.join(roles)} are taken off by the chat template; Ollama's language "
            "cannot do that, so send texts without them."
        )
    if parts.system == "none":
        yield "The chat template leaves system texts out, and so does Ollama's."
    if parts.folded:
        yield "The chat template takes no system text; it is written in front of the first question."
    if encoder.renderer.prints_date(encoder.renderer.template()):
        yield "The chat template writes today's date; in Ollama it is that of the day of this export."
    if tools is not None:
        yield f"{_JSON}{' Results are written as JSON, too.' if tools.quoted else ''}"
        if tools.single:
            yield "The chat template has one call a turn; several of a turn would be written one behind the other."
    elif not encoder.renderer.supported(Conversation(talk(u="zqone"), _TOOLS))[2]:
        yield (
            "Tools have a place in the chat template but not in Ollama's, so Ollama takes none for this model. "
            f"Why: {made.no_tools}."
        )
    if made.no_thinking:
        yield f"Thinking has a place in the chat template but not in Ollama's. Why: {made.no_thinking}."
    later = [*talk(u="zqone", a=_ANSWER), *talk(s="zqlater", v="zqtwo")]
    if _differ(prompts, template, later, None):
        yield "A system text behind the first turn is not written as the chat template writes it."
    if _differ(prompts, template, talk(u="zqone", a=_ANSWER), _ANSWER):
        yield "An answer that the request has begun is continued without what the chat template writes before it."
    thinking = f"<think>\n{_THOUGHT}\n</think>\n\n{_ANSWER}"
    if _differ(prompts, template, talk(u="zqone", a=thinking, v="zqtwo"), None):
        yield "The chat template leaves the thinking out of earlier answers; with Ollama, requests have to do so."


def _differ(prompts: Prompts, template: GoTemplate, messages: list[Message], until: str | None) -> bool:
    """Whether the two differ on a conversation that a translation need not get right.

    Args:
        prompts: of the chat template.
        template: its translation.
        messages: the conversation.
        until: the end of the last message, which is to be continued; None asks for an answer.
    """
    try:
        expected = prompts(messages, ask=until is None)
    except RowProblem:
        return False
    if until is not None:
        if until not in expected:
            return True
        expected = expected[: expected.rindex(until) + len(until)]
    return ollama_prompt(template, messages) != expected
