"""A tokenizer as GGUF has it: tokens, their kinds, merges or scores, and the name of what cuts text before merging.

Read from tokenizer.json alone: BPE over bytes (GPT-2's kind), or BPE over characters with bytes for what has no token
(SentencePiece's kind, `hasten.export.gguf.pieces`).
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import TokenType
from tokenizers import Tokenizer

from hasten.errors import CapabilityError, ModelError
from hasten.export.gguf import pieces
from hasten.export.gguf.cuts import cut_of

_LOOK_SPECIAL = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
_BLANK = "▁"


@dataclass(frozen=True)
class Vocabulary:
    """What the file says of the tokenizer."""

    model: str
    """``gpt2`` or ``llama``."""
    cut: str
    tokens: list[str]
    """One for each row of the embedding."""
    kinds: list[TokenType]
    merges: list[str]
    """In order; none of SentencePiece's kind."""
    scores: list[float] | None = None
    """Of SentencePiece's kind: the higher, the sooner a token is merged."""
    blank_first: bool | None = None
    """Of SentencePiece's kind: whether a text begins with a blank that it did not have."""
    takes_blanks: bool = False
    """Whether control tokens take the blanks behind them."""
    before: tuple[int, ...] = ()
    """Ids that are put in front of every text."""
    behind: tuple[int, ...] = ()
    """Ids that are put behind it."""


def read(folder: Path, rows: int, *, beyond: Collection[str] = ()) -> Vocabulary:
    """The vocabulary of a folder.

    Args:
        folder: with tokenizer.json.
        rows: of the embedding; ids beyond the tokenizer's are unused tokens.
        beyond: tokens that may have no row; those without one are left out.

    Raises:
        CapabilityError: a tokenizer that llama.cpp does not have.
        ModelError: there is no tokenizer.json, it is damaged, or a token has no row.
    """
    tokenizer = _load(folder / "tokenizer.json")
    model, subject = tokenizer["model"], str(folder / "tokenizer.json")
    if model.get("type") != "BPE":
        raise CapabilityError(
            subject,
            f"a tokenizer of kind {model.get('type')}",
            "GGUF files are written for BPE tokenizers, over bytes or with bytes for unknown characters.",
            "Export it to Hugging Face or vLLM.",
        )
    bytewise = not model.get("byte_fallback")
    every: list[dict[str, Any]] = tokenizer.get("added_tokens", [])
    added = [one for one in every if one["id"] < rows or one["content"] not in beyond]
    _require_rows({**model["vocab"], **{one["content"]: one["id"] for one in added}}, rows, beyond, subject)
    tokens, kinds = [f"[PAD{number}]" for number in range(rows)], [TokenType.UNUSED] * rows
    for text, number in model["vocab"].items():
        if number < rows:
            tokens[number] = text
            kinds[number] = TokenType.NORMAL if bytewise else pieces.kind_of(text, model.get("unk_token"))
    for one in added:
        tokens[one["id"]], kinds[one["id"]] = _added(one)
    before, behind = _put_around(tokenizer.get("post_processor"))
    if bytewise:
        cut, merges = cut_of(tokenizer, subject), _merges(model["merges"])
        return Vocabulary("gpt2", cut, tokens, kinds, merges, before=before, behind=behind)
    apart = {one["content"] for one in added}
    known = pieces.scores_of(model["vocab"], model["merges"], apart, subject)
    scores = [known.get(number, -1000.0 if kinds[number] != TokenType.UNUSED else -10000.0) for number in range(rows)]
    blank_first = pieces.blank_first(tokenizer, subject)
    takes_blanks = any(one["special"] and one.get("rstrip") for one in added)
    return Vocabulary("llama", "default", tokens, kinds, [], scores, blank_first, takes_blanks, before, behind)


def _added(one: dict[str, Any]) -> tuple[str, TokenType]:
    text = one["content"]
    if one["special"] or _looks_special(text):
        return text, TokenType.CONTROL
    return text.replace(_BLANK, " "), TokenType.USER_DEFINED  # which is searched for before blanks become marks


def _looks_special(text: str) -> bool:
    """Some models do not mark their control tokens as special; by their looks, llama.cpp's converter takes these so."""
    marked = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
    return text in _LOOK_SPECIAL or any(text.startswith(begin) and text.endswith(end) for begin, end in marked)


def _put_around(post_processor: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What a post-processor adds in front of and behind a text: asked of one that has a vocabulary of one word."""
    word = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    parts = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "decoder"))
    bare = {"version": "1.0", "added_tokens": [], **parts, "post_processor": post_processor, "model": word}
    found = Tokenizer.from_str(json.dumps(bare)).encode("a")
    place = found.special_tokens_mask.index(0)
    return tuple(found.ids[:place]), tuple(found.ids[place + 1 :])


def _merges(merges: list[Any]) -> list[str]:
    """A pair is written with a blank between, so a blank within is written as byte-level tokens have it."""
    return [one if isinstance(one, str) else " ".join(part.replace(" ", "Ġ") for part in one) for one in merges]


def _require_rows(ids: dict[str, int], rows: int, beyond: Collection[str], subject: str) -> None:
    without = sorted((number, text) for text, number in ids.items() if number >= rows and text not in beyond)
    if without:
        number, text = without[0]
        raise ModelError(
            subject,
            f"token '{text}' has id {number}, and {len(without) - 1} more lie beyond the embedding",
            f"The embedding has {rows} rows, one for each token.",
            "Resize the model's embedding to its tokenizer, or use the tokenizer that it was trained with.",
        )


def _load(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ModelError(
            str(file),
            "it is not there",
            "A GGUF file holds the tokenizer, which is read from it.",
            "Save the tokenizer into that folder.",
        )
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        found["model"]["vocab"].items()
    except (ValueError, KeyError, TypeError, AttributeError) as cause:
        raise ModelError(str(file), "no tokenizer", "It has a model with a vocabulary.", "Save it again.") from cause
    return found
