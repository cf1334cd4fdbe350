"""The syntax of Go's text/template, as far as Ollama's templates use it.

    text {{ pipeline }} text {{- if pipeline }} ... {{ else if pipeline }} ... {{ else }} ... {{ end -}} text

A template is parsed to the nodes below, which `hasten.export.ollama.go_template` evaluates. As in Go, unknown functions
and undefined variables are refused when a template is parsed, not when it is run. Templates within templates (`define`,
`template`, `block`) are refused.

The rules are those of https://pkg.go.dev/text/template.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hasten.export.ollama.go_lexer import Token, constant, pieces, template_error

FUNCTIONS = frozenset("and or not len index slice print printf println eq ne lt le gt ge json".split())
"""Go's own functions that Ollama's templates use, and Ollama's `json`."""
_BRANCHES = ("if", "range", "with")


@dataclass(frozen=True)
class Text:
    """Literal text."""

    text: str


@dataclass(frozen=True)
class Constant:
    """A string, number, boolean or nil."""

    value: str | int | float | bool | None


@dataclass(frozen=True)
class Name:
    """A function."""

    name: str


@dataclass(frozen=True)
class Dot:
    """The current value."""


@dataclass(frozen=True)
class Variable:
    """``$name``; ``$`` is the value that the template was given."""

    name: str


@dataclass(frozen=True)
class Chain:
    """Fields of a value: ``.A.B``, ``$x.A``, ``(pipeline).A``."""

    start: Operand
    fields: tuple[str, ...]


@dataclass(frozen=True)
class Pipe:
    """Commands whose values are handed on, and the variables that get the last one."""

    commands: tuple[tuple[Operand, ...], ...]
    variables: tuple[str, ...] = ()
    declares: bool = True


@dataclass(frozen=True)
class Branch:
    """``if``, ``range`` or ``with``."""

    kind: Literal["if", "range", "with"]
    pipe: Pipe
    body: tuple[Node, ...]
    otherwise: tuple[Node, ...] | None


@dataclass(frozen=True)
class Jump:
    """``break`` or ``continue`` of the innermost range."""

    kind: Literal["break", "continue"]


Operand = Constant | Name | Dot | Variable | Chain | Pipe
Node = Text | Pipe | Branch | Jump


def parse(template: str) -> tuple[Node, ...]:
    """The nodes of a template.

    Raises:
        ModelError: it is not valid, or uses something that Ollama's templates do not.
    """
    parser = _Parser(list(pieces(template)))
    nodes, end = parser.body(())
    if end:
        raise template_error(f"'{{{{ {end} }}}}' without a beginning")
    return nodes


class _Parser:
    def __init__(self, pieces: list[str | list[Token]]) -> None:
        self._pieces = pieces
        self._place = 0
        self._known = ["$"]
        self._ranges = 0

    def body(self, ends: tuple[str, ...]) -> tuple[tuple[Node, ...], str]:
        """Nodes up to one of the words in `ends`, and what stands there after it (`else if ...` goes on)."""
        nodes: list[Node] = []
        while self._place < len(self._pieces):
            piece = self._pieces[self._place]
            self._place += 1
            if isinstance(piece, str):
                nodes.append(Text(piece))
                continue
            action = _Action(piece, self._known)
            word = action.word()
            if word in ("else", "end"):
                if word not in ends:
                    return tuple(nodes), word
                self._rest = action
                return tuple(nodes), word
            nodes.append(self._node(word, action))
        if ends:
            raise template_error("an if, range or with without its {{ end }}")
        return tuple(nodes), ""

    def _node(self, word: str, action: _Action) -> Node:
        if word in _BRANCHES:
            return self._branch(word, action)
        if word in ("break", "continue"):
            action.take()
            action.finish()
            if not self._ranges:
                raise template_error(f"'{word}' outside a range")
            return Jump(word)
        pipe = action.pipe()
        action.finish()
        return pipe

    def _branch(self, word: str, action: _Action) -> Branch:
        action.take()
        scope = len(self._known)
        pipe = action.pipe(many=word == "range")
        action.finish()
        self._ranges += word == "range"
        body, end = self.body(("else", "end"))
        self._ranges -= word == "range"
        otherwise = self._otherwise(word) if end == "else" else None
        del self._known[scope:]
        return Branch(word, pipe, body, otherwise)  # type: ignore[arg-type]

    def _otherwise(self, kind: str) -> tuple[Node, ...]:
        rest = self._rest
        rest.take()
        word = rest.word()
        if word == kind != "range":
            return (self._branch(word, rest),)
        rest.finish()
        nodes, end = self.body(("end",))
        if end != "end":
            raise template_error("two {{ else }} of one branch")
        return nodes


class _Action:
    """The tokens of one action."""

    def __init__(self, tokens: list[Token], known: list[str]) -> None:
        self._tokens = tokens
        self._known = known
        self._place = 0
        self._skip()

    def word(self) -> str:
        """The next token's text, if it is a word."""
        kind, text = self._peek()
        return text if kind == "word" else ""

    def take(self) -> Token:
        """The next token; the blanks behind it are skipped."""
        token = self._peek()
        self._place += 1
        self._skip()
        return token

    def finish(self) -> None:
        """Refuse anything more."""
        if self._peek()[0]:
            raise template_error(f"'{self._peek()[1]}' is one thing too many in an action")

    def pipe(self, many: bool = False) -> Pipe:
        """A pipeline with its variables; `many` allows two of them."""
        variables, declares = self._variables(many)
        commands = [self._command(first=True)]
        while self._peek() == ("sign", "|"):
            self.take()
            commands.append(self._command(first=False))
        if declares:
            self._known.extend(variables)
        for name in variables:
            if name not in self._known:
                raise template_error(f"undefined variable '{name}'")
        return Pipe(tuple(commands), variables, declares)

    def _variables(self, many: bool) -> tuple[tuple[str, ...], bool]:
        start, names = self._place, []
        while self._peek()[0] == "variable":
            names.append(self.take()[1])
            sign = self._peek()
            if sign[0] == "sign" and sign[1] in (":=", "="):
                self.take()
                return tuple(names), sign[1] == ":="
            if sign != ("sign", ",") or not many or len(names) > 1:
                break
            self.take()
        self._place = start
        return (), True

    def _command(self, first: bool) -> tuple[Operand, ...]:
        operands = [self._operand()]
        while self._peek()[0] and self._peek() not in (("sign", "|"), ("sign", ")")):
            if self._tokens[self._place - 1][0] != "blank":
                raise template_error(f"no blank before '{self._peek()[1]}'")
            operands.append(self._operand())
        if operands[0] == Constant(None):
            raise template_error("'nil', which is no command")
        if not first and not isinstance(operands[0], Name):
            raise template_error("a pipeline into something that is no function")
        if len(operands) > 1 and not isinstance(operands[0], Name):
            raise template_error("arguments of something that is no function")
        return tuple(operands)

    def _operand(self) -> Operand:
        made = self._term()
        fields = []
        while self._place < len(self._tokens) and self._tokens[self._place][0] == "field":
            fields.append(self._tokens[self._place][1][1:])
            self._place += 1
        self._skip()
        if not fields:
            return made
        if isinstance(made, Constant | Name):
            raise template_error(f"'.{fields[0]}' of something that has no fields")
        if isinstance(made, Chain):
            return Chain(made.start, (*made.fields, *fields))
        return Chain(made, tuple(fields))

    def _term(self) -> Operand:
        """One term, without skipping the blanks behind it: `.A .B` are two, `.A.B` is one."""
        kind, text = self._peek()
        self._place += 1
        made: Operand
        match kind:
            case "field":
                made = Chain(Dot(), (text[1:],))
            case "dot":
                made = Dot()
            case "variable":
                if text not in self._known:
                    raise template_error(f"undefined variable '{text}'")
                made = Variable(text)
            case "word":
                made = _word(text)
            case "string" | "char" | "number":
                made = Constant(constant(kind, text))
            case "sign" if text == "(":
                self._skip()
                made = self.pipe()
                if self._peek() != ("sign", ")"):
                    raise template_error("a '(' without its ')'")
                self._place += 1
            case _:
                raise template_error(f"'{text}' where a value should stand" if text else "an action without a value")
        return made

    def _peek(self) -> Token:
        return self._tokens[self._place] if self._place < len(self._tokens) else ("", "")

    def _skip(self) -> None:
        while self._peek()[0] == "blank":
            self._place += 1


def _word(text: str) -> Operand:
    constants = {"true": True, "false": False, "nil": None}
    if text in constants:
        return Constant(constants[text])
    if text not in FUNCTIONS:
        rule = f"hasten knows {', '.join(sorted(FUNCTIONS))}, if, range and with."
        raise template_error(f"'{text}', which is no function of Ollama's templates", rule)
    return Name(text)
