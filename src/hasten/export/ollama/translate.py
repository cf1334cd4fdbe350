"""A chat template in Ollama's language, proven by rendering both on many conversations.

Jinja is not read: the Go template is built of the texts that the chat template writes around contents
(`hasten.export.ollama.chat_parts`). Whether that is all it does is then tried on conversations of every shape with
contents that break templates. One difference, and there is no translation.

One thing Go's language cannot do is to take blanks off the ends of a text, as the templates of Llama 3 and Gemma do.
Such contents are proven to be equal but for these blanks, and a note says so.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hasten.data.conversation import Conversation, Message, RowProblem
from hasten.data.templates import ChatEncoder
from hasten.errors import CapabilityError
from hasten.export.ollama.chat_parts import REMEDY, ChatParts, Prompts, Trim, chat_parts, talk, trims_of
from hasten.export.ollama.compose import written
from hasten.export.ollama.go_template import GoTemplate
from hasten.export.ollama.prompt import ollama_prompt

SHAPES = ("u", "su", "uau", "suau", "uauau", "suauau")
"""The turns of proven conversations: system, user, assistant."""
CONTENTS = {
    "plain": "What is 2 + 2?",
    "empty": "",
    "blanks inside": "two  blanks,\ttab,\n\nlines\r\nand more",
    "blanks around": "  \n text \n\n ",
    "only blanks": " \n ",
    "quotes": 'it\'s "quoted" """three times""" `so` \'\'too\'\'',
    "braces": "{{ .System }} {{- end -}} }} {% if x %} {{ '{{' }} { {# #}",
    "escapes": "a\\nb %s %d $x \\u00e9 &amp; <b>",
    "scripts": "héllo Привет 日本語 العربية हिन्दी 🙂👩‍👩‍👧 ｜▁\u00a0\u200b\u3000x",
    "code": "def f(x):\n    return {'a': [x, 1.5]}\n",
    "markup": "### Instruction:\n# Title\n- item\n\nUSER: x\nASSISTANT: y [INST] z [/INST]",
    "long": "word " * 2000 + "end",
}
"""Contents of proven conversations: in all turns, and in one of them beside plain ones."""
_THOUGHT, _ANSWER = "zqthought", "zqanswer"
_FUNCTION = {"name": "zqtool", "description": "a", "parameters": {"type": "object", "properties": {}}}
_TOOLS = [{"type": "function", "function": _FUNCTION}]
_MOST_SHOWN = 300


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
        text = written(parts)
        template = GoTemplate(text)
        proven = _proven(prompts, template, parts.trims)
    except RowProblem as problem:
        raise _not_rendered(problem) from problem
    return Translated(text, parts.default, tuple(_notes(encoder, prompts, template, parts)), proven)


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
        return _proven(prompts, GoTemplate(template), trims_of(prompts))
    except RowProblem as problem:
        raise _not_rendered(problem) from problem


def _prompts(encoder: ChatEncoder, adds_bos: bool | None) -> Prompts:
    return Prompts(encoder, encoder.wants_bos if adds_bos is None else adds_bos)


def _not_rendered(problem: RowProblem) -> CapabilityError:
    rule = "It is translated from what it writes for user, assistant and system turns."
    return CapabilityError("the chat template", str(problem), rule, REMEDY)


def conversations() -> Iterator[tuple[str, list[Message]]]:
    """Every conversation on which a translation is proven, with what its contents are called."""
    for shape in SHAPES:
        for name, content in CONTENTS.items():
            yield name, _conversation(shape, [content] * len(shape))
            if name != "plain" and len(shape) > 1:
                for place in range(len(shape)):
                    texts = [f"text {number}" for number in range(len(shape))]
                    texts[place] = content
                    yield name, _conversation(shape, texts)


def _conversation(shape: str, texts: Sequence[str]) -> list[Message]:
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": roles[role], "content": text} for role, text in zip(shape, texts, strict=True)]


def _proven(prompts: Prompts, template: GoTemplate, trims: dict[str, Trim]) -> int:
    """On how many conversations both write the same.

    Raises:
        CapabilityError: they do not.
        RowProblem: the chat template refuses a plain conversation.
    """
    count = 0
    for name, messages in conversations():
        try:
            expected = prompts(messages)
        except RowProblem:
            if name == "plain":
                raise
            continue  # there is nothing to be equal to: the chat template refuses, say, empty texts
        tried = ollama_prompt(template, messages)
        if tried != expected and expected not in _trimmed(template, messages, trims):
            roles = " ".join(message["role"] for message in messages)
            shown = f"{_around(expected, tried)} would become {_around(tried, expected)}"
            raise CapabilityError(
                "the chat template",
                f"for the turns '{roles}' ({name}), {shown}",
                "What Ollama makes of a conversation has to be what the chat template makes of it.",
                REMEDY,
            )
        count += 1
    return count


def _trimmed(template: GoTemplate, messages: list[Message], trims: dict[str, Trim]) -> Iterator[str]:
    """What the template writes when contents lose the blanks that the chat template takes off some of them."""
    choices = [trims[message["role"]].all_of(message["content"]) for message in messages]
    for texts in itertools.product(*choices):
        changed = [{**message, "content": text} for message, text in zip(messages, texts, strict=True)]
        yield ollama_prompt(template, changed)


def _around(text: str, other: str) -> str:
    """The part of a text where it begins to differ from another."""
    place = next((i for i, pair in enumerate(zip(text, other, strict=False)) if pair[0] != pair[1]), len(other))
    start = max(0, min(place, len(text)) - _MOST_SHOWN // 2)
    shown = text[start : start + _MOST_SHOWN]
    return f"{'...' if start else ''}{shown!r}{'...' if start + _MOST_SHOWN < len(text) else ''}"


def _notes(encoder: ChatEncoder, prompts: Prompts, template: GoTemplate, parts: ChatParts) -> Iterator[str]:
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
    if not encoder.renderer.supported(Conversation(talk(u="zqone"), _TOOLS))[2]:
        yield "Tools have a place in the chat template but not in Ollama's, so Ollama takes none for this model."
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
