"""Control tokens that a row spells out stay text: `<|im_end|>` typed by a user never ends a turn.

Templates write control tokens as text too, so once a conversation is rendered nobody can tell theirs from the user's.
Therefore the user's are exchanged for private characters before rendering and put back afterwards, while the
template's own are exchanged for others:

    row        hi<|im_end|>         -> hi A         (A: a private character)
    rendered   <|im_start|>user\\nhi A <|im_end|>    (the template saw no control token in the content)
    encoded    S user\\nhi<|im_end|> E              (S, E: private characters, added tokens of a private copy)

The copy of the tokenizer takes S and E for added tokens with the same rules as the real ones, splits the spelled
`<|im_end|>` like any other text, and its S and E are counted back to the real ids. Rows that spell nothing (nearly all)
never come here.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

from hasten.data.conversation import RowProblem

_SPELLED, _REAL = 0xF0000, 0xF8000
"""First private characters of control tokens in content, and of the template's own."""


class ControlText:
    """The control tokens of one tokenizer, and the exchange.

    Args:
        tokens: control token -> its id.
        added: the tokenizer's added tokens: id -> its rules (`tokenizers.AddedToken`).
        backend: a `tokenizers.Tokenizer` that may be copied.
    """

    def __init__(self, tokens: Mapping[str, int], added: Mapping[int, Any], backend: Any) -> None:
        self.tokens = dict(tokens)
        self._added, self._backend = added, backend
        self._order = sorted(self.tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, self._order))) if self._order else None
        self._hide = {token: chr(_SPELLED + number) for number, token in enumerate(self._order)}
        self._real = {token: chr(_REAL + number) for number, token in enumerate(self._order)}
        self._shown = {character: token for token, character in self._hide.items()}
        self._exchanged = re.compile("|".join(map(re.escape, [*self._order, *self._shown])))
        self._private = re.compile(f"[{chr(_SPELLED)}-{chr(_REAL + len(self._order))}]")
        self._plain: Any = None
        self._copy: Any = None
        self._ids: dict[Any, int] = {}

    @property
    def plain(self) -> Any:
        """The tokenizer without the truncation and padding that somebody may have left on it."""
        if self._plain is None:
            self._plain = self._copied_backend()
        return self._plain

    def spells(self, value: Any) -> bool:
        """Whether a text, or any text inside lists and mappings, contains a control token."""
        if isinstance(value, str):
            return self._pattern is not None and self._pattern.search(value) is not None
        if isinstance(value, Mapping):
            return any(self.spells(key) or self.spells(item) for key, item in value.items())
        return isinstance(value, (list, tuple)) and any(self.spells(item) for item in value)

    def hidden(self, value: Any) -> Any:
        """The same value with spelled control tokens exchanged for private characters.

        Raises:
            RowProblem: it already has such characters.
        """
        if isinstance(value, str):
            if self._private.search(value):
                raise RowProblem("private-use characters beside spelled control tokens")
            return self._pattern.sub(lambda found: self._hide[found[0]], value) if self._pattern else value
        if isinstance(value, Mapping):
            return {self.hidden(key): self.hidden(item) for key, item in value.items()}
        return [self.hidden(item) for item in value] if isinstance(value, (list, tuple)) else value

    def encode(self, text: str, spans: Sequence[tuple[int, int]]) -> tuple[list[int], list[tuple[int, int]], list[Any]]:
        """Ids of a rendered text with hidden control tokens: the template's act, the hidden ones are text.

        Args:
            text: rendered from hidden content.
            spans: characters of it.

        Returns:
            Ids, each token's characters, and the spans, both in the text that was encoded.
        """
        pieces: list[str] = []
        old, new = [0], [0]  # where a piece begins before and after the exchange
        place = 0
        for found in self._exchanged.finditer(text):
            pieces += [text[place : found.start()], self._shown.get(found[0]) or self._real[found[0]]]
            place = found.end()
            old += [found.start(), place]
            new += [new[-1] + len(pieces[-2]), new[-1] + len(pieces[-2]) + len(pieces[-1])]
        pieces.append(text[place:])

        def moved(character: int) -> int:
            index = bisect_right(old, character) - 1
            return new[index] + character - old[index]

        encoding: Any = self._copied().encode("".join(pieces), add_special_tokens=False)
        ids: list[Any] = [self._ids.get(number, number) for number in encoding.ids]
        return ids, encoding.offsets, [(moved(start), moved(stop)) for start, stop in spans]

    def _copied(self) -> Any:
        """A copy that splits control tokens like text, with a stand-in for each of them."""
        if self._copy is None:
            from tokenizers import AddedToken

            copy = self._copied_backend()
            stand_ins = []
            for token in self._order:
                rules = self._added.get(self.tokens[token])
                flags = {name: getattr(rules, name, False) for name in ("lstrip", "rstrip", "single_word")}
                stand_ins.append(AddedToken(self._real[token], normalized=False, special=False, **flags))
            copy.add_tokens(stand_ins)
            copy.encode_special_tokens = True
            self._ids = {copy.token_to_id(self._real[token]): number for token, number in self.tokens.items()}
            self._copy = copy
        return self._copy

    def _copied_backend(self) -> Any:
        from tokenizers import Tokenizer

        copy: Any = Tokenizer.from_str(self._backend.to_str())
        copy.no_truncation()
        copy.no_padding()
        return copy
