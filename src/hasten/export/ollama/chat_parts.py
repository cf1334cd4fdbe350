"""What a chat template writes around texts, found by rendering conversations whose texts are known.

With u, a and s for the texts of user, assistant and system, a rendered conversation falls into pieces:

    [u a u]      head u between a again u ask
    [s u a u]    before s after u between a again u ask

The pieces are cut where turns end, which is known from renderings that ask for no answer, so that a role's text has
the same neighbours wherever it stands. Nothing here is trusted: `hasten.export.ollama.translate` proves the result.
"""

from __future__ import annotations

import os.path
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from hasten.data.conversation import Conversation, Message, RowProblem
from hasten.data.templates import ChatEncoder
from hasten.data.turns import system_folded
from hasten.errors import CapabilityError

REMEDY = (
    "Without a template, send Ollama the finished prompt: /api/generate with raw: true; or train with a named template "
    "(data.template: chatml)."
)
Place = Literal["own", "first", "last", "none"]
Tools = list[dict[str, Any]] | None
_U, _A, _V, _S = "zqaskone", "zqanswer", "zqasktwo", "zqsystem"
_BLANKS = "  \n"


@dataclass(frozen=True)
class Trim:
    """Which blanks a template takes off the texts of one role."""

    left: bool = False
    right: bool = False

    def all_of(self, text: str) -> list[str]:
        """The text as it is, and without the blanks on either and on both sides where they are taken off."""
        found = [text, text.lstrip() if self.left else text, text.rstrip() if self.right else text]
        return sorted({*found, found[1].rstrip() if self.right else text}, key=len)

    def __bool__(self) -> bool:
        return self.left or self.right


@dataclass(frozen=True)
class ChatParts:
    """What stands around the texts.

    Attributes:
        head: in front of the first turn where there is no system text; it holds the template's own system text.
        before, after: around the system text.
        empty: in place of these and an empty system text.
        alone: in place of `after` where the first question is empty and has the system text in it.
        system: ``own`` (a turn of its own), ``first`` (it opens the first question, whose header is in `before`),
            ``last`` (it stands in the last question, behind its header), or ``none`` (it is left out).
        user: in front of a question, and behind it.
        assistant: in front of an answer, and behind it.
        ask: what asks for an answer, behind the last question.
        default: the system text that the template writes by itself; empty where it is none or not to be told.
        folded: the template takes no system text, so it is put in front of the first question.
        trims: by role, where the template takes blanks off.
    """

    head: str
    before: str
    after: str
    empty: str
    alone: str
    system: Place
    user: tuple[str, str]
    assistant: tuple[str, str]
    ask: str
    default: str
    folded: bool
    trims: dict[str, Trim]


class Prompts:
    """Prompts as the chat template renders them, asking for an answer.

    Args:
        encoder: with a chat template.
        adds_bos: the program that gets the text puts the begin token in front, so it is left out here.
    """

    def __init__(self, encoder: ChatEncoder, adds_bos: bool) -> None:
        self._renderer, self._tokenizer = encoder.renderer, encoder.tokenizer
        self._bos = encoder.tokenizer.bos_token if adds_bos else None
        self.folded = False
        try:
            self(talk(s=_S, u=_U))
        except RowProblem:
            self.folded = True

    def __call__(self, messages: Sequence[Message], ask: bool = True, tools: Tools = None) -> str:
        """The text.

        Args:
            messages: of the conversation.
            ask: for an answer.
            tools: schemas of functions.

        Raises:
            RowProblem: the template refuses the messages, or has no place for their calls or the tools.
        """
        if self.folded:
            messages = system_folded(Conversation(list(messages))).messages
        given, *as_text = self._renderer.supported(Conversation(list(messages), tools))
        for what, missing in zip(("calls", "tools"), as_text, strict=True):
            if missing:
                raise RowProblem(f"the chat template has no place for {what}")
        return self._begun(self._renderer.render(given.messages, given.tools, ask=ask))

    def thinking(self, messages: Sequence[Message], think: bool) -> str:
        """The text that asks for an answer with or without thinking, as `enable_thinking` says.

        Raises:
            RowProblem: the template refuses the messages.
        """
        from jinja2 import TemplateError

        template = self._renderer.template()
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages),
                chat_template=template,
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=think,
            )
        except (TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError) as cause:
            # Whatever a template's own code runs into on these messages is theirs, as in `Renderer`.
            raise RowProblem(f"the chat template refuses enable_thinking={think} ({cause})") from cause
        return self._begun(text)

    def _begun(self, text: str) -> str:
        return text.removeprefix(self._bos) if self._bos else text


def talk(**texts: str) -> list[Message]:
    """Messages from texts by letters: s, u, a, v (the second question)."""
    roles = {"s": "system", "u": "user", "a": "assistant", "v": "user"}
    return [{"role": roles[name], "content": text} for name, text in texts.items()]


def chat_parts(prompts: Prompts) -> ChatParts:
    """The pieces of a chat template.

    Raises:
        CapabilityError: its texts do not fall into these pieces.
    """
    head, between, again, ask = _pieces(prompts, talk(u=_U, a=_A, v=_V))
    user_end = _end(prompts, talk(u=_U), between, ask)
    answer_end = _end(prompts, talk(u=_U, a=_A), again)
    while not head.endswith(again[len(answer_end) :]):
        answer_end = again[: len(answer_end) + 1]
    user = (again[len(answer_end) :], user_end)
    assistant = (between[len(user_end) :], answer_end)
    head = head.removesuffix(user[0])
    before, after, place = _around_system(prompts, user, assistant)
    made = ChatParts(
        head=head,
        before=before,
        after=after,
        empty=before + after,
        alone=after,
        system=place,
        user=user,
        assistant=assistant,
        ask=ask[len(user_end) :],
        default="",
        folded=prompts.folded,
        trims=trims_of(prompts),
    )
    return _with_own_texts(prompts, made)


def _around_system(prompts: Prompts, user: tuple[str, str], assistant: tuple[str, str]) -> tuple[str, str, Place]:
    """What stands before and behind the system text, and where it stands."""
    messages = talk(s=_S, u=_U, a=_A, v=_V)
    text = prompts(messages)
    if _S not in text:
        return "", "", "none"
    if -1 < text.find(_S) < text.find(_U):
        before, after, *_ = _pieces(prompts, messages)
        if after.endswith(user[0]):
            return before, after.removesuffix(user[0]), "own"
        return before, after, "first"
    if text.find(_A) < text.find(_S) < text.find(_V):
        *_, again, behind, _ = _pieces(prompts, [*messages[1:3], messages[0], messages[3]], messages)
        return again.removeprefix(assistant[1] + user[0]), behind, "last"
    raise _refused(messages, text, "The system text is written in front of the first or in the last question.")


def _with_own_texts(prompts: Prompts, parts: ChatParts) -> ChatParts:
    """The parts with what the template writes in place of no system text and of an empty one."""
    changes: dict[str, Any] = {}
    if parts.system == "own":
        if parts.head and parts.head.startswith(parts.before) and parts.head.endswith(parts.after):
            default = parts.head[len(parts.before) : len(parts.head) - len(parts.after)]
            if default.strip() and prompts(talk(s=default, u=_U)) == prompts(talk(u=_U)):
                changes["default"] = default
    if parts.system == "first":
        rest, end = prompts(talk(s=_S, u="")).partition(_S)[2], parts.user[1] + parts.ask
        changes["alone"] = rest.removesuffix(end) if rest.endswith(end) else parts.after
    start, found, _ = prompts(talk(s="", u=_U)).partition(_U)
    if found and parts.system == "own" and start.endswith(parts.user[0]):
        changes["empty"] = start.removesuffix(parts.user[0])
    elif found and parts.system == "first":
        changes["empty"] = start
    elif found and parts.system == "last":
        changes["empty"] = start.removeprefix(parts.head).removeprefix(parts.user[0])
    return replace(parts, **changes)


def trims_of(prompts: Prompts) -> dict[str, Trim]:
    """What a chat template takes off texts that have blanks around them, by role."""
    found: dict[str, Trim] = {}
    for role, text in (("system", _S), ("user", _V), ("assistant", _A)):
        plain = talk(s=_S, u=_U) if role == "system" else talk(u=_U, a=_A, v=_V)
        made = [{**message, "content": message["content"].replace(text, _BLANKS + text + _BLANKS)} for message in plain]
        # What remains of the blanks is seen against the rendering without any.
        before, _, behind = prompts(plain).partition(text)
        got_before, _, got_behind = prompts(made).partition(text)
        found[role] = Trim(got_before == before, got_behind == behind)
    return found


def _pieces(prompts: Prompts, order: Sequence[Message], messages: Sequence[Message] | None = None) -> list[str]:
    """The text of messages cut at their contents, which stand in it in some order, each once."""
    text = prompts(messages or order)
    rest, pieces = text, []
    for message in order:
        piece, found, rest = rest.partition(message["content"])
        if not found or message["content"] in rest:
            raise _refused(messages or order, text, "Every text of a conversation is written once, in its order.")
        pieces.append(piece)
    return [*pieces, rest]


def _end(prompts: Prompts, messages: Sequence[Message], *others: str) -> str:
    """What closes the last of these messages: what all that may follow it begins with."""
    try:
        closed = prompts(messages, ask=False).rpartition(messages[-1]["content"])[2]
    except RowProblem:  # a template that only asks
        closed = others[0]
    return _common([closed, *others])


def _common(texts: Sequence[str]) -> str:
    """What all texts begin with, without half a control token at its end (`<|end|>` and `<|assistant|>` share `<|`)."""
    common = os.path.commonprefix(list(texts))
    cut = common.rfind("<")
    return common[:cut] if cut > common.rfind(">") else common


def _refused(messages: Sequence[Message], text: str, rule: str) -> CapabilityError:
    roles = " ".join(message["role"] for message in messages)
    return CapabilityError("the chat template", f"the turns '{roles}' are written as {text!r}", rule, REMEDY)
