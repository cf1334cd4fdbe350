"""Books in sections: what a tokenizer holds while it works is hundreds of bytes a token, so a text of 100 MB is cut.

Only plain text that is going to be split is cut (other rows end at the length limit anyway), and its tokens are joined
again: documents do not know where. A section ends with a line where there is one, else before a blank; there byte-level
tokenizers have a border anyway. Others may put a blank in front of a section, as they do before every text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from hasten.data.conversation import PlainText
from hasten.data.encoding import Content, Encoded

LONGEST = 1_000_000
"""Characters of a section."""
_LOOK = 10_000
_BORDERS = re.compile(r"(?<=\S)\n(?=\S)"), re.compile(r"(?<=\S)(?= \S)")


def sections(content: Content, longest: int = LONGEST) -> Iterator[tuple[Content, bool]]:
    """A row's content in parts that are tokenized one by one.

    Args:
        content: of one row.
        longest: characters of a part.

    Yields:
        Each part, and whether another one follows; a conversation is one part.
    """
    if not isinstance(content, PlainText) or len(content.completion) <= longest:
        yield content, False
        return
    text, prompt, start = content.completion, content.prompt, 0
    while len(text) - start > longest:
        stop = _border(text, start, start + longest)
        yield PlainText(prompt, text[start:stop]), True
        prompt, start = "", stop
    yield PlainText(prompt, text[start:]), False


def joined(parts: Sequence[Encoded], bos: int | None) -> Encoded:
    """The tokens of a row whose sections were encoded each as a text.

    Args:
        parts: at least one.
        bos: the token that the encoder puts in front of a text; None where it puts none.

    Returns:
        What the whole text would be: one begin token, one end token, everything behind the first section learnt.
    """
    ids, learnt = [], []
    for index, part in enumerate(parts):
        first = int(index > 0 and part.ids[:1].tolist() == [bos])
        last = len(part.ids) - (part.ended and index < len(parts) - 1)
        ids.append(part.ids[first:last])
        learnt.append(part.learnt[first:last] if index == 0 else np.ones(last - first, np.bool_))
    return replace(
        parts[-1],
        ids=np.concatenate(ids),
        learnt=np.concatenate(learnt),
        spelled=any(part.spelled for part in parts),
        straddles=any(part.straddles for part in parts),
    )


def _border(text: str, start: int, stop: int) -> int:
    """Where a section that begins at `start` and may go up to `stop` ends."""
    for border in _BORDERS:
        places = [found.end() for found in border.finditer(text, max(stop - _LOOK, start + 1), stop)]
        if places:
            return places[-1]
    return stop
