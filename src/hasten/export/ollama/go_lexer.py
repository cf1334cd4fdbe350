"""Go templates cut into literal texts and the tokens of actions.

Blanks are tokens too, since `.A .B` are two values and `.A.B` is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from hasten.errors import ModelError

BLANKS = " \t\r\n"
Token = tuple[str, str]
"""A kind (blank, string, char, number, field, dot, variable, word, sign) and a text."""
_TOKEN = re.compile(
    r"""(?P<blank>[ \t\r\n]+)
    |(?P<string>"(?:[^"\\\n]|\\.)*"|`[^`]*`)
    |(?P<char>'(?:[^'\\\n]|\\.[^']*)')
    |(?P<number>[+-]?(?:0[xX][0-9a-fA-F_]+|(?:[0-9][0-9_]*)(?:\.[0-9_]*)?(?:[eE][+-]?[0-9]+)?|\.[0-9][0-9_]*))
    |(?P<field>\.[^\W\d]\w*)
    |(?P<dot>\.)
    |(?P<variable>\$\w*)
    |(?P<word>[^\W\d]\w*)
    |(?P<sign>:=|=|\||\(|\)|,)""",
    re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(?:([abfnrtv\\'\"])|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3})|(.?))")
_CONTROLS = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


def template_error(value: str, rule: str = "Ollama reads templates in Go's template language.") -> ModelError:
    """The error for a template that cannot be read or run."""
    return ModelError("the Ollama template", value, rule, "Check it against https://pkg.go.dev/text/template.")


def pieces(template: str) -> Iterator[str | list[Token]]:
    """Literal texts, and the tokens of actions, with the blanks taken off that trim markers ask for."""
    place, trim = 0, False
    while True:
        start = template.find("{{", place)
        text = template[place:] if start < 0 else template[place:start]
        if trim:
            text = text.lstrip(BLANKS)
        if start < 0:
            if text:
                yield text
            return
        inside = start + 2
        if template[inside : inside + 1] == "-" and template[inside + 1 : inside + 2] in tuple(BLANKS):
            inside += 2
            text = text.rstrip(BLANKS)
        if text:
            yield text
        tokens, place, trim = _action(template, inside)
        if tokens is not None:
            yield tokens


def _action(template: str, place: int) -> tuple[list[Token] | None, int, bool]:
    """The tokens up to the closing braces (None for a comment), the place behind these, and whether blanks go."""
    comment = re.compile(r"/\*.*?\*/(?:(}})|[ \t\r\n]-}})", re.DOTALL).match(template, place)
    if comment:
        return None, comment.end(), comment[1] is None
    tokens: list[Token] = []
    while True:
        if template.startswith("}}", place):
            return tokens, place + 2, False
        if template.startswith("-}}", place) and tokens and tokens[-1][0] == "blank":
            return tokens, place + 3, True
        match = _TOKEN.match(template, place)
        if match is None:
            shown = template[place : place + 20]
            raise template_error(f"'{shown}' where an action should go on" if shown else "an action without its end")
        tokens.append((str(match.lastgroup), match[0]))
        place = match.end()


def constant(kind: str, text: str) -> str | int | float:
    """The value of a token that is a string, a character or a number."""
    if kind == "number":
        plain = text.replace("_", "")
        try:
            return int(plain, 0)
        except ValueError:  # a fraction, or zeros in front
            return float(plain) if re.search(r"[.eE]", plain) else int(plain, 8)
    if text.startswith("`"):
        return text[1:-1].replace("\r", "")
    made = _ESCAPE.sub(_unescaped, text[1:-1])
    if kind == "char":
        if len(made) != 1:
            raise template_error(f"{text}, which is not one character")
        return ord(made)
    return made


def _unescaped(match: re.Match[str]) -> str:
    letter, *codes, octal, other = match.groups()
    if other is not None:
        raise template_error(f"'{match[0]}', which is no escape of Go's")
    if letter:
        return _CONTROLS.get(letter, letter)
    number = int(octal, 8) if octal else int(next(code for code in codes if code), 16)
    return chr(number)
