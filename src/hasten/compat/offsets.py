"""Where each token stands in the text that a row of token ids spells.

The row is decoded and tokenized again; where that gives the same ids, the tokenizer's own offsets are exact. Where it
does not (a row cut inside a word, ids that no text gives), tokens are decoded one after another, each with the ones
before it that are not yet whole characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Span = tuple[int, int]
_INCOMPLETE = "\ufffd"


def text_and_offsets(tokenizer: Any, ids: Sequence[int]) -> tuple[str, list[Span]]:
    """The text of a row and each token's span of characters in it.

    Args:
        tokenizer: the one that made the row.
        ids: token ids.
    """
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if getattr(tokenizer, "is_fast", False):
        again = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        if list(again.input_ids) == list(ids):
            return text, [(int(start), int(stop)) for start, stop in again.offset_mapping]
    return one_by_one(tokenizer, ids)


def one_by_one(tokenizer: Any, ids: Sequence[int]) -> tuple[str, list[Span]]:
    """As `text_and_offsets`, by decoding a growing window; a character of several tokens belongs to all of them."""

    def decode(start: int, stop: int) -> str:
        window = list(ids[start:stop])
        return tokenizer.decode(window, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    text = ""
    spans: list[Span] = []
    pending = context = first_pending = 0
    for index in range(len(ids)):
        # The token before the window is decoded along, because some decoders drop a blank at the beginning.
        before, after = decode(context, first_pending), decode(context, index + 1)
        piece = after[len(before) :]
        pending += 1
        last = index + 1 == len(ids)
        if piece.endswith(_INCOMPLETE) and not last:
            continue
        spans += [(len(text), len(text) + len(piece))] * pending
        text += piece
        context, first_pending, pending = first_pending, index + 1, 0
    return text, spans
