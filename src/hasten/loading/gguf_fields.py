"""Metadata of a GGUF as values of the type that is wanted.

A file may hold any type under any name: a text where a number is due, a list where there is one value, sizes that no
machine has. Whoever reads a field says what it must be, and gets that or an error that names the field.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from hasten.errors import ModelError

SIZES = 2**20
"""More than any model's width, heads or layers, and few enough that products of three are numbers of 64 bits."""
POSITIONS = 2**32 - 1
"""Of contexts and windows: what the format has."""


def wrong(path: Path, name: str, value: Any, rule: str) -> ModelError:
    """The error for a field.

    Args:
        path: the file.
        name: of the field.
        value: what it holds.
        rule: what it must be, as a sentence.
    """
    remedy = "Convert it again with a current converter, or use the model's Hugging Face folder."
    return ModelError(str(path), f"{name} = {value!r:.60}", rule, remedy)


def whole(path: Path, name: str, value: Any, *, least: int = 0, most: int = SIZES) -> int:
    """A whole number.

    Raises:
        ModelError: it is none, or out of bounds.
    """
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not is_whole or not least <= value <= most:
        raise wrong(path, name, value, f"It is a whole number from {least:,} to {most:,}.")
    return int(value)


def number(path: Path, name: str, value: Any, *, positive: bool = False) -> float:
    """A finite number.

    Raises:
        ModelError: it is none, or not above zero where it must be.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or (positive and value <= 0):
        raise wrong(path, name, value, f"It is a {'positive' if positive else 'finite'} number.")
    return float(value)


def flag(path: Path, name: str, value: Any) -> bool:
    """True or false, also as 1 or 0.

    Raises:
        ModelError: it is neither.
    """
    if not isinstance(value, (bool, int)) or value not in (0, 1):
        raise wrong(path, name, value, "It is true or false.")
    return bool(value)


def text(path: Path, name: str, value: Any) -> str:
    """A text.

    Raises:
        ModelError: it is none.
    """
    if not isinstance(value, str):
        raise wrong(path, name, value, "It is a text.")
    return value


def texts(path: Path, name: str, value: Any) -> list[str]:
    """A list of texts.

    Raises:
        ModelError: it is none.
    """
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise wrong(path, name, value, "It is a list of texts.")
    return value


def numbers(path: Path, name: str, value: Any) -> list[float]:
    """A list of numbers, none of them NaN.

    Raises:
        ModelError: it is none.
    """
    if not isinstance(value, list) or not all(
        isinstance(each, (int, float)) and not isinstance(each, bool) and each == each for each in value
    ):
        raise wrong(path, name, value, "It is a list of numbers.")
    return value
