"""`to_sharegpt`'s merged prompt: one text from several columns, with parts that an empty column takes away.

"{instruction}[[\\nYour input is:\\n{input}]]"
 ^ always      ^ only in rows that have an input
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hasten.errors import ConfigError, DataError, did_you_mean

_SUBJECT = "merged_prompt"
_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


@dataclass(frozen=True)
class Part:
    """A stretch of the prompt: texts and column names in turn, texts first and last."""

    texts: tuple[str, ...]
    columns: tuple[str, ...]
    optional: bool

    def fill(self, row: Mapping[str, Any], number: int) -> str:
        """The part's text for one row; nothing where it is optional and one of its columns is empty.

        Raises:
            DataError: a column that must be there is None; the row is named.
        """
        values = [row[column] for column in self.columns]
        if self.optional and any(is_empty(value) for value in values):
            return ""
        for column, value in zip(self.columns, values, strict=True):
            if is_missing(value):
                raise DataError(
                    f"row {number}",
                    f"nothing in column '{column}'",
                    f"{_SUBJECT} needs it in every row.",
                    f"Put the part with {{{column}}} between [[ and ]], or leave such rows out with dataset.filter.",
                )
        filled = [str(value) + text for value, text in zip(values, self.texts[1:], strict=True)]
        return self.texts[0] + "".join(filled)


def is_missing(value: Any) -> bool:
    """None, or the not-a-number that tables have for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_empty(value: Any) -> bool:
    """Missing, or text of white space only; zero and False are values."""
    return is_missing(value) or (isinstance(value, str) and not value.strip())


def parse_prompt(prompt: str, columns: Sequence[str]) -> list[Part]:
    """The parts of a merged prompt.

    Args:
        prompt: text with ``{column}`` and ``[[optional parts]]``; ``{{`` and ``}}`` are braces.
        columns: the dataset's columns.

    Raises:
        ConfigError: brackets or braces without their partner, an unknown column, or an optional part without one.
    """
    parts: list[Part] = []
    rest = prompt
    while rest:
        before, opened, behind = rest.partition("[[")
        if "]]" in before:
            raise _unbalanced("']]'", "Begin the optional part with '[['.")
        if before:
            parts.append(_part(before, columns, optional=False))
        inside, closed, rest = behind.partition("]]")
        if opened and not closed:
            raise _unbalanced(f"'[[{inside[:40]}'", "End the optional part with ']]'.")
        if "[[" in inside:
            raise _unbalanced(f"'[[' inside '[[{inside[:40]}'", "Optional parts do not nest: end the first one before.")
        if opened:
            part = _part(inside, columns, optional=True)
            if not part.columns:
                rule = "An optional part is left out where its column is empty."
                raise ConfigError(_SUBJECT, f"'[[{inside}]]' has no column", rule, "Write a {column} in it.")
            parts.append(part)
    return parts


def _part(text: str, known: Sequence[str], *, optional: bool) -> Part:
    texts, columns = [""], []
    at = 0
    for piece in _PIECE.finditer(text):
        texts[-1] += text[at : piece.start()]
        at = piece.end()
        if piece[0] in ("{{", "}}"):
            texts[-1] += piece[0][0]
        elif piece[1] is None:
            remedy = "Write {column}, or {{ and }} for braces."
            raise ConfigError(_SUBJECT, f"'{piece[0]}' in {text[:60]!r}", "A brace has a partner.", remedy)
        else:
            columns.append(_column(piece[1], known))
            texts.append("")
    texts[-1] += text[at:]
    return Part(tuple(texts), tuple(columns), optional)


def _column(name: str, known: Sequence[str]) -> str:
    if name not in known:
        rule = f"The dataset's columns are {', '.join(known)}."
        raise ConfigError(_SUBJECT, f"'{{{name}}}'", rule, did_you_mean(name, known, "Name one of them."))
    return name


def _unbalanced(value: str, remedy: str) -> ConfigError:
    return ConfigError(_SUBJECT, value, "'[[' and ']]' stand around what is left out when empty.", remedy)
