"""A record of a machine without the names of its people: so that it can be sent."""

from __future__ import annotations

import getpass
import platform
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_HOMES = re.compile(r"/(?:home|Users)/[^/\s:'\"]+")
_CARDS = re.compile(r"\b(GPU|MIG)-[0-9a-fA-F][0-9a-fA-F-]{7,}")
_LOGINS = re.compile(r"//[^/\s@]+@")
"""Names and passwords in addresses, of proxies above all."""
_COMMON = {"root", "user", "ubuntu", "admin", "nvidia", "localhost", "linux", "none"}
"""Names that tell nothing, and that stand in texts for other things."""
_SHORTEST = 3
"""Shorter names stand inside other words."""


def names_here() -> dict[str, str]:
    """Texts of this machine that name somebody, and what stands for them."""
    found: dict[str, str] = {}
    try:
        found[getpass.getuser()] = "someone"
    except (KeyError, OSError, ImportError):  # no such user: a container that runs under a bare number
        pass
    full = platform.node()
    for name in (full, full.partition(".")[0]):
        found[name] = "some-host"
    return {name: other for name, other in found.items() if len(name) >= _SHORTEST and name.lower() not in _COMMON}


def redacted(values: Any, names: dict[str, str], homes: Iterable[str] = ()) -> Any:
    """Plain values with the names in every text replaced, keys too.

    Args:
        values: dictionaries, lists, texts, numbers.
        names: whole words to replace, from `names_here`.
        homes: folders that become ``~``, besides everything below ``/home`` and ``/Users``.
    """
    homes = sorted((home for home in homes if len(home) > 1), key=len, reverse=True)
    if isinstance(values, dict):
        return {redacted(key, names, homes): redacted(value, names, homes) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [redacted(value, names, homes) for value in values]
    if not isinstance(values, str):
        return values
    text = values
    for home in homes:
        text = re.sub(rf"{re.escape(home)}(?=[/\s:'\"]|$)", "~", text)
    text = _LOGINS.sub("//...@", _CARDS.sub(r"\1-...", _HOMES.sub("~", text)))
    for name, other in sorted(names.items(), key=lambda pair: -len(pair[0])):
        text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", other, text)
    return text


def home() -> str:
    """The home folder, or nothing where it cannot be told."""
    try:
        return str(Path.home())
    except RuntimeError:
        return ""
