"""BPE with bytes for what has no token, as SentencePiece makes it, as GGUF's ``llama`` tokenizer has it.

llama.cpp merges the pair whose *result* has the highest score; tokenizer.json lists pairs in the order of merging.
Both say the same where all pairs that make one token stand together and none is left out, which is checked: then a
token's score is its place in that order, as in SentencePiece's own files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gguf import TokenType

from hasten.errors import CapabilityError

_BYTE = re.compile(r"^<0x[0-9A-Fa-f]{2}>$")
_BLANK = "▁"
_NO_MERGE = -1000.0
"""Of tokens that never come out of merging."""


def pairs_of(merges: list[Any]) -> list[tuple[str, str]]:
    """Pairs in the order of merging; older files write them as one text."""
    return [(pair[0], pair[1]) if isinstance(pair, list) else tuple(pair.split(" ", 1)) for pair in merges]


def scores_of(vocabulary: Mapping[str, int], merges: list[Any], unmerged: set[str], subject: str) -> dict[int, float]:
    """The scores of a vocabulary.

    Args:
        vocabulary: tokens and their ids.
        merges: from tokenizer.json.
        unmerged: tokens that text is searched for before merging.
        subject: of an error.

    Returns:
        By id; where ids are in the order of merging, SentencePiece's own values.

    Raises:
        CapabilityError: the order of pairs cannot be said by scores of tokens.
    """
    order: dict[str, int] = {}
    last = ""
    for first, second in (pairs := pairs_of(merges)):
        made = first + second
        if made in unmerged:
            continue
        if made != last and made in order:
            raise _inexpressible(subject, f"pairs that make '{made}' stand apart")
        order.setdefault(made, len(order))
        last = made
    known = set(pairs)
    for token in order:
        for place in range(1, len(token)):
            pair = (token[:place], token[place:])
            if pair[0] in vocabulary and pair[1] in vocabulary and pair not in known and not unmerged & set(pair):
                raise _inexpressible(subject, f"'{pair[0]}' and '{pair[1]}' are not merged, although '{token}' is")
    plain = sorted(number for text, number in vocabulary.items() if not _BYTE.match(text) and text not in unmerged)
    base = vocabulary[next(iter(order))] if order else 0
    ids = [vocabulary[token] for token in order]
    by_id = ids == sorted(ids)
    scores = {number: float(base - number) if by_id else _NO_MERGE - len(order) for number in plain}
    if not by_id:
        scores.update({vocabulary[token]: -float(place) for token, place in order.items()})
    scores.update({number: 0.0 for text, number in vocabulary.items() if _BYTE.match(text)})
    scores.update({vocabulary[text]: _NO_MERGE for text in unmerged if text in vocabulary})
    return scores


def kind_of(token: str, unknown: str | None) -> TokenType:
    """The kind of a token that was not added."""
    if _BYTE.match(token):
        return TokenType.BYTE
    return TokenType.UNKNOWN if token == unknown else TokenType.NORMAL


def blank_first(tokenizer: Mapping[str, Any], subject: str) -> bool:
    """Whether a blank is put in front of a text.

    Raises:
        CapabilityError: text is changed or cut in another way than SentencePiece's.
    """
    steps = [*_steps(tokenizer.get("normalizer")), *_steps(tokenizer.get("pre_tokenizer"))]
    blanks = {"Replace ' ' ▁", "Metaspace always", "Metaspace first", "Metaspace never"}
    if blanks & set(steps) and all(step in (*blanks, "Prepend ▁", "Split ' '") for step in steps):
        return any(step in ("Prepend ▁", "Metaspace always", "Metaspace first") for step in steps)
    raise CapabilityError(
        subject,
        f"a tokenizer with bytes for unknown characters that changes text by {steps}",
        f"Blanks become '{_BLANK}', and nothing else changes.",
        "Export it to Hugging Face or vLLM.",
    )


def _steps(step: Mapping[str, Any] | None) -> list[str]:
    if step is None:
        return []
    kind = step["type"]
    if kind == "Sequence":
        return [found for each in step.get("normalizers") or step["pretokenizers"] for found in _steps(each)]
    if kind == "Prepend":
        return [f"Prepend {step['prepend']}"]
    if kind == "Replace":
        return [f"Replace {step['pattern'].get('String')!r} {step['content']}"]
    if kind == "Metaspace" and step["replacement"] == _BLANK and not step.get("split", True):
        return [f"Metaspace {step.get('prepend_scheme', 'always')}"]
    if kind == "Split":
        return [f"Split {step['pattern'].get('String')!r}"]
    return [kind]


def _inexpressible(subject: str, value: str) -> CapabilityError:
    rule = "GGUF's tokenizer of this kind knows scores of tokens, not an order of pairs."
    return CapabilityError(subject, value, rule, "Export it to Hugging Face or vLLM.")
