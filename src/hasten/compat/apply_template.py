"""`apply_chat_template`, `construct_chat_template`: a chat template written as an example, and rows rendered by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from hasten.compat.notes import say_once
from hasten.compat.splits import per_split
from hasten.compat.standardize import conversation_column, turn_types
from hasten.compat.written_template import WrittenTemplate, parse_written
from hasten.data.templates import ChatEncoder
from hasten.errors import ConfigError, DataError, did_you_mean

TEXT = "text"
DEFAULT_SYSTEM = (
    "Below are some instructions that describe some tasks. Write responses that appropriately complete each request."
)
_EXCHANGE = "\n\n### Instruction:\n{INPUT}\n\n### Response:\n{OUTPUT}"
TWO_EXCHANGES = "{SYSTEM}" + _EXCHANGE + _EXCHANGE


def apply_chat_template(
    dataset: Any,
    tokenizer: Any = None,
    chat_template: str = TWO_EXCHANGES,
    default_system_message: str = DEFAULT_SYSTEM,
    extra_eos_tokens: Sequence[str] | None = None,
) -> Any:
    """Conversations as a column ``text``, by a template that is written as an example of one or two exchanges.

    The tokenizer gets the template, Ollama's file for it as ``_ollama_modelfile``, and the texts before questions and
    answers as ``_instruction_part`` and ``_response_part``.

    Args:
        dataset: a `datasets.Dataset` or `DatasetDict` with turns of role and content (`standardize_sharegpt`).
        tokenizer: changed in place.
        chat_template: text with ``{INPUT}`` and ``{OUTPUT}``, once or twice, and ``{SYSTEM}`` or not.
        default_system_message: stands at ``{SYSTEM}`` where a conversation has no system turn.
        extra_eos_tokens: tokens of the model that end an answer besides its own end token.

    Returns:
        A new dataset; other columns are kept. The texts lack the begin token where the tokenizer adds it.

    Raises:
        ConfigError: no tokenizer, a template that cannot be read, or a dataset without conversations.
        DataError: a row that the template has no place for.
    """
    if tokenizer is None:
        raise ConfigError("tokenizer", "None", "It gets the template.", "Pass tokenizer=.")
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    made = construct_chat_template(inner, chat_template, default_system_message, extra_eos_tokens)
    encoder = ChatEncoder(inner)
    rendered = per_split(dataset, lambda part: _with_text(part, inner, made[1], drop_bos=encoder.wants_bos))
    inner._ollama_modelfile, inner.chat_template, inner._instruction_part, inner._response_part = made
    return rendered


def construct_chat_template(
    tokenizer: Any = None,
    chat_template: str = TWO_EXCHANGES,
    default_system_message: str = DEFAULT_SYSTEM,
    extra_eos_tokens: Sequence[str] | None = None,
) -> tuple[str, str, str, str]:
    """What `apply_chat_template` makes of an example; nothing is changed.

    Args:
        tokenizer: it names the tokens that begin a text and end an answer.
        chat_template: see `apply_chat_template`.
        default_system_message: see there.
        extra_eos_tokens: see there.

    Returns:
        Ollama's Modelfile, the Jinja template, the text before questions, the text before answers.

    Raises:
        ConfigError: as there.
    """
    if tokenizer is None:
        raise ConfigError("tokenizer", "None", "Its tokens end the answers.", "Pass tokenizer=.")
    encoder = ChatEncoder(tokenizer)
    extra = _known_tokens(tokenizer, extra_eos_tokens)
    ends = [*([tokenizer.eos_token] if tokenizer.eos_token else []), *extra]
    # A begin token that the tokenizer adds by itself is the template's first word; any other is text of the example.
    bos = tokenizer.bos_token or ""
    written = parse_written(chat_template, ends, encoder.control_tokens, bos, keep_bos=not encoder.wants_bos)
    if not written.has_system and default_system_message != DEFAULT_SYSTEM:
        say_once("the chat template has no {SYSTEM}, so default_system_message stands nowhere")
    return (
        written.modelfile(default_system_message, _stops(written, ends)),
        written.jinja(default_system_message, bos=encoder.wants_bos),
        written.instruction_part,
        written.response_part,
    )


def _known_tokens(tokenizer: Any, tokens: Sequence[str] | None) -> list[str]:
    vocabulary = tokenizer.get_vocab()
    given = [tokens] if isinstance(tokens, str) else list(tokens or [])
    for token in given:
        if token not in vocabulary:
            remedy = did_you_mean(token, tokenizer.all_special_tokens, "Leave it out.")
            raise ConfigError("extra_eos_tokens", repr(token), "It is a token of the model.", remedy)
    return given


def _stops(written: WrittenTemplate, ends: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([written.end.strip(), *ends]))


def _with_text(dataset: Any, tokenizer: Any, template: str, *, drop_bos: bool) -> Any:
    column = conversation_column(dataset)
    if "role" not in (keys := turn_types(dataset, column)):
        raise ConfigError(
            "dataset",
            f"turns of {', '.join(keys)}",
            "A turn has role and content.",
            "Call standardize_sharegpt(dataset) first.",
        )

    def text(row: dict[str, Any], index: int) -> dict[str, str]:
        turns = [{key: value for key, value in turn.items() if value is not None} for turn in row[column]]
        if not turns or any(not isinstance(turn.get("content"), str) for turn in turns):
            value = "a turn without text" if turns else "no turns"
            raise DataError(f"row {index + 1}", value, "Every turn has text.", "Leave it out with dataset.filter.")
        try:
            made = tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False)
        except TemplateError as cause:
            roles = " ".join(str(turn.get("role")) for turn in turns[:8])
            remedy = "Correct the turns, or write the template for them."
            raise DataError(f"row {index + 1}", f"turns '{roles}'", f"The template says: {cause}.", remedy) from cause
        return {TEXT: made.removeprefix(tokenizer.bos_token) if drop_bos else made}

    return dataset.map(text, with_indices=True, desc="Applying the chat template")
