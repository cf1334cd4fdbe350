"""`get_chat_template`: another chat template on a tokenizer.

The tokenizer that was given is changed and returned, as scripts expect of this function. Its vocabulary is not: a
template whose end of turn is no token of the model has it written as the model's own end token, so that the model
needs no new rows and stops where it always did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from hasten.compat.notes import say_once
from hasten.compat.quoting import quoted
from hasten.data.named_templates import EOS, named_template, with_known_end
from hasten.errors import ConfigError, did_you_mean

MAPPING = {"role": "role", "content": "content", "user": "user", "assistant": "assistant"}
_KEYS = (*MAPPING, "system")


def get_chat_template(
    tokenizer: Any,
    chat_template: str | tuple[str, str] | Sequence[str] = "chatml",
    mapping: Mapping[str, str] = MAPPING,
    map_eos_token: bool = True,
    system_message: str | None = None,
    patch_saving: bool = True,
    use_zoo_tokenizer_patch: bool | None = None,
) -> Any:
    """Give a tokenizer a chat template.

    Args:
        tokenizer: changed in place.
        chat_template: a name (see `hasten.data.named_templates`), a Jinja text, or a pair of Jinja text and the
            token that ends a turn.
        mapping: how the rows call the keys and roles: ``{"role": "from", "content": "value", "user": "human",
            "assistant": "gpt"}`` for ShareGPT rows.
        map_eos_token: make the end of turn the tokenizer's end token.
        system_message: put first where a conversation has no system turn.
        patch_saving: without effect: a tokenizer saves its template.
        use_zoo_tokenizer_patch: without effect: nothing is patched.

    Returns:
        The same tokenizer.

    Raises:
        ConfigError: an unknown name, a mapping with unknown keys, a template that is not valid, or an end of turn that
            neither the model nor the template knows.
    """
    text, stop = _text_and_stop(chat_template)
    if stop is not None and stop != EOS:
        text = _end_of_turn(tokenizer, text, stop, map_eos_token)
    made = _prologue(_checked_mapping(mapping), system_message) + text
    before = tokenizer.chat_template
    tokenizer.chat_template = made
    try:
        turns = [
            {mapping.get("role", "role"): mapping.get(role, role), mapping.get("content", "content"): "a"}
            for role in ("user", "assistant")
        ]
        tokenizer.apply_chat_template(turns, tokenize=False)
    except TemplateError as cause:
        tokenizer.chat_template = before
        raise ConfigError(
            "chat_template",
            f"it does not render ({cause})",
            "It must render a user and an assistant turn.",
            "Correct the Jinja text.",
        ) from cause
    return tokenizer


def _text_and_stop(chat_template: Any) -> tuple[str, str | None]:
    if isinstance(chat_template, str):
        if "{%" in chat_template or "{{" in chat_template:
            return chat_template, None
        return named_template(chat_template)
    if isinstance(chat_template, (tuple, list)) and len(chat_template) >= 2 and isinstance(chat_template[0], str):
        stop = chat_template[1]
        return chat_template[0], stop if isinstance(stop, str) else None
    raise ConfigError(
        "chat_template",
        repr(chat_template),
        "It is a name, a Jinja text, or a pair of Jinja text and end token.",
        "Use 'chatml'.",
    )


def _end_of_turn(tokenizer: Any, text: str, stop: str, map_eos_token: bool) -> str:
    vocabulary = tokenizer.get_vocab()
    if stop in vocabulary:
        if map_eos_token:
            tokenizer.eos_token = stop
        return text
    if stop not in text:
        remedy = did_you_mean(stop, tokenizer.all_special_tokens, "Use the tokenizer's eos_token.")
        raise ConfigError("chat_template", f"its end token {stop!r}", "Neither model nor template has it.", remedy)
    if not map_eos_token:
        say_once(f"{stop} is no token of this model and is spelled in pieces (map_eos_token=False)")
        return text
    say_once(f"{stop} is no token of this model; turns end in its own {tokenizer.eos_token}")
    return with_known_end(text, stop, tokenizer)


def _checked_mapping(mapping: Mapping[str, str]) -> dict[str, str]:
    for name in mapping:
        if name not in _KEYS:
            rule = f"Its keys are {', '.join(_KEYS)}."
            raise ConfigError("mapping", repr(name), rule, did_you_mean(str(name), _KEYS, "Remove it."))
    return {**MAPPING, "system": "system", **mapping}


def _prologue(mapping: dict[str, str], system_message: str | None) -> str:
    """Jinja that renames the rows' keys and roles, and adds the system turn; nothing when there is nothing to do."""
    lines: list[str] = []
    if mapping != {**MAPPING, "system": "system"}:
        role, content = quoted(mapping["role"]), quoted(mapping["content"])
        names = ", ".join(f"{quoted(mapping[name])}: {quoted(name)}" for name in ("user", "assistant", "system"))
        lines += [
            "{%- set renamed = namespace(turns=[]) -%}",
            f"{{%- set roles = {{{names}}} -%}}",
            "{%- for turn in messages -%}",
            f"{{%- set role = turn[{role}] if {role} in turn else turn['role'] -%}}",
            f"{{%- set content = turn[{content}] if {content} in turn else turn['content'] -%}}",
            "{%- set renamed.turns = renamed.turns + [dict(turn, role=roles.get(role, role), content=content)] -%}",
            "{%- endfor -%}",
            "{%- set messages = renamed.turns -%}",
        ]
    if system_message is not None:
        lines += [
            "{%- if messages[0]['role'] != 'system' -%}",
            f"{{%- set messages = [{{'role': 'system', 'content': {quoted(system_message)}}}] + messages -%}}",
            "{%- endif -%}",
        ]
    return "".join(f"{line}\n" for line in lines)
