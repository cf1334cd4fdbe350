"""Documents as tests see them: fenced blocks with their invisible marks, and the `hasten` commands in a text."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"<!-- ([a-z]+)(?:: (.*?))? -->\n\Z")
_OURS = re.compile(r"(?:\S*/)?hasten |docker (?:compose|run) ")
_INLINE = re.compile(r"`(hasten [a-z][^`]*)`")


@dataclass(frozen=True)
class Block:
    """A fenced block; `mark` is the word of the comment right above it, empty where there is none."""

    language: str
    text: str
    mark: str
    detail: str
    line: int


def blocks(document: Path) -> list[Block]:
    """All fenced blocks of a document, in order."""
    text = document.read_text(encoding="utf-8")
    found = []
    for fence in _FENCE.finditer(text):
        before = text[: fence.start()]
        mark = _MARK.search(before)
        word, detail = (mark[1], mark[2] or "") if mark else ("", "")
        found.append(Block(fence[1], fence[2], word, detail, before.count("\n") + 1))
    return found


def commands(text: str) -> list[list[str]]:
    """The `hasten` commands of a shell block, as words; lines that end in a backslash go on."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        line = line.removeprefix("$ ")
        if not _OURS.match(line):
            continue
        words = shlex.split(line, comments=True)
        if words[:1] == ["docker"] and "run" in words and "hasten" in words:
            words = words[words.index("hasten") + 1 :]  # behind the name of the image or service
        if words[:1] == ["hasten"]:
            words = words[1:]
        elif words and words[0].endswith("/hasten"):
            words = words[1:]
        else:
            continue
        if words:
            found.append(words)
    return found


def inline_commands(document: Path) -> list[list[str]]:
    """Those that stand within sentences."""
    text = _FENCE.sub("", document.read_text(encoding="utf-8"))
    plain = (re.sub(r"[\[\]|]|\.\.\.", " ", found[1]) for found in _INLINE.finditer(text))
    return [shlex.split(words)[1:] for words in plain]
