"""The texts that begin a question and an answer: found in what a chat template renders, or given by the script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

from jinja2 import TemplateError

from hasten.data.templates import ChatEncoder
from hasten.errors import ConfigError

_WORDS = ("Zqfirst", "Zqsecond", "Zqthird", "Zqfourth")
_REMEDY = "Pass instruction_part and response_part, the texts before a question and before an answer."


@dataclass(frozen=True)
class Markers:
    """What stands before a question, before an answer, and at the end of an answer."""

    instruction: str
    response: str
    ends: tuple[str, ...]


def find_markers(tokenizer: Any, instruction: str | None, response: str | None) -> Markers:
    """The markers a script gave, or those of the tokenizer's chat template.

    Args:
        tokenizer: with a chat template, unless both texts are given.
        instruction: the text before a question, or None.
        response: the text before an answer, or None.

    Raises:
        ConfigError: one of two, an empty one, or a template in which they cannot be found.
    """
    if (instruction is None) != (response is None):
        missing = "instruction_part" if instruction is None else "response_part"
        rule = "They are given together, or both are found in the chat template."
        raise ConfigError(missing, "None", rule, f"Pass {missing} too, or leave both out.")
    if instruction is None or response is None:
        instruction, response = _from_template(tokenizer)
    for name, text in (("instruction_part", instruction), ("response_part", response)):
        if not text.strip():
            raise ConfigError(name, repr(text), "It is searched for in every row.", _REMEDY)
    return Markers(instruction, response, _ends(tokenizer))


def _from_template(tokenizer: Any) -> tuple[str, str]:
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError("instruction_part, response_part", "None", "This tokenizer has no chat template.", _REMEDY)
    roles = ("user", "assistant", "user", "assistant")
    turns = [{"role": role, "content": word} for role, word in zip(roles, _WORDS, strict=True)]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except TemplateError as cause:
        rule = "The chat template must render questions and answers in turn."
        raise ConfigError("instruction_part, response_part", str(cause), rule, _REMEDY) from cause
    starts = [text.find(word) for word in _WORDS]
    if -1 in starts or starts != sorted(starts):
        rule = "The chat template changes or drops earlier turns, so the texts between them cannot be seen."
        raise ConfigError("instruction_part, response_part", "None", rule, _REMEDY)
    between = [text[start + len(word) : stop] for start, word, stop in zip(starts, _WORDS, starts[1:], strict=False)]
    controls = ChatEncoder(tokenizer).control_tokens
    # The last answer may begin with more (an empty thinking part): that is the answer's.
    answers = commonprefix([between[0], between[2]]) or between[0]
    return _without_end(between[1], controls), _without_end(answers, controls)


def _without_end(between: str, controls: Sequence[str]) -> str:
    """Drop the end of the turn before: a leading control token and the white space after it."""
    for token in controls:
        if between.startswith(token) and between[len(token) :].strip():
            return between[len(token) :].lstrip()
    return between


def _ends(tokenizer: Any) -> tuple[str, ...]:
    from hasten.data.formats import RowProblem

    try:
        ids = ChatEncoder(tokenizer).end_ids()
    except (RowProblem, TemplateError):
        ids = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    return tuple(tokenizer.convert_ids_to_tokens(ids))
