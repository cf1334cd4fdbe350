"""Text of a script as a string of Jinja."""

from __future__ import annotations


def quoted(text: str) -> str:
    """Any text as a Jinja string."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{escaped}'"
