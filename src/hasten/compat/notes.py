"""The one place where the compatible API speaks: a line on standard error, each note once per process."""

from __future__ import annotations

import sys

_said: set[str] = set()


def say(text: str) -> None:
    """Print one line for people on standard error."""
    sys.stderr.write(f"hasten: {text}\n")
    sys.stderr.flush()


def say_once(text: str) -> None:
    """Print a line unless this process has printed the same one before."""
    if text not in _said:
        _said.add(text)
        say(text)
