"""Proof that a template for Ollama writes conversations as the chat template does.

Both render conversations of every shape, with contents that break templates. One difference, and there is no proof.

One thing Go's language cannot do is to take blanks off the ends of a text, as the templates of Llama 3 and Gemma do.
Such contents are proven to be equal but for these blanks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from hasten.data.conversation import Message, RowProblem
from hasten.errors import CapabilityError
from hasten.export.ollama.chat_parts import REMEDY, Prompts, Tools, Trim
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
_MOST_SHOWN = 300


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


def proven(prompts: Prompts, template: GoTemplate, trims: dict[str, Trim]) -> int:
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
        if tried != expected and expected not in trimmed(template, messages, trims):
            raise unequal(name, messages, expected, tried)
        count += 1
    return count


def trimmed(
    template: GoTemplate,
    messages: list[Message],
    trims: dict[str, Trim],
    tools: Tools = None,
    think: bool | None = None,
) -> Iterator[str]:
    """What the template writes when contents lose the blanks that the chat template takes off some of them."""
    none = Trim()
    choices = [trims.get(message["role"], none).all_of(message["content"]) for message in messages]
    for texts in itertools.product(*choices):
        changed = [{**message, "content": text} for message, text in zip(messages, texts, strict=True)]
        yield ollama_prompt(template, changed, tools, think)


def unequal(name: str, messages: list[Message], expected: str, tried: str) -> CapabilityError:
    """The error for a conversation that the two write differently.

    Args:
        name: of what it tries.
        messages: its turns.
        expected: what the chat template writes.
        tried: what Ollama's writes.
    """
    roles = " ".join(message["role"] for message in messages)
    return CapabilityError(
        "the chat template",
        f"for the turns '{roles}' ({name}), {_around(expected, tried)} would become {_around(tried, expected)}",
        "What Ollama makes of a conversation has to be what the chat template makes of it.",
        REMEDY,
    )


def _around(text: str, other: str) -> str:
    """The part of a text where it begins to differ from another."""
    place = next((i for i, pair in enumerate(zip(text, other, strict=False)) if pair[0] != pair[1]), len(other))
    start = max(0, min(place, len(text)) - _MOST_SHOWN // 2)
    shown = text[start : start + _MOST_SHOWN]
    return f"{'...' if start else ''}{shown!r}{'...' if start + _MOST_SHOWN < len(text) else ''}"
