"""Tokenizers with a chat template, as exports get them."""

from __future__ import annotations

from typing import Any

from support import tiny


def encoder_of(template: str | None, bos: str = "<B>", eos: str = "<E>", **options: Any) -> Any:
    """A tiny tokenizer with this chat template, begin token and end token."""
    from transformers import AddedToken

    from hasten.data.templates import ChatEncoder

    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=True) for token in (bos, eos)])
    tokenizer.bos_token, tokenizer.eos_token = bos, eos
    tokenizer.chat_template = template
    return ChatEncoder(tokenizer, **options)
