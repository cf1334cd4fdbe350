"""Running templates of Go's text/template, so that what Ollama will make of one can be checked without Ollama.

Values are those of `hasten.export.ollama.go_values`. Whatever is not sure to be as in Go is an error and not a guess.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from hasten.export.ollama.go_functions import call, deciding
from hasten.export.ollama.go_lexer import template_error
from hasten.export.ollama.go_syntax import (
    Branch,
    Chain,
    Constant,
    Dot,
    Jump,
    Name,
    Node,
    Operand,
    Pipe,
    Text,
    Variable,
    parse,
)
from hasten.export.ollama.go_values import Struct, kind_of, shown, truth


class GoTemplate:
    """A parsed template.

    Args:
        template: its text.

    Raises:
        ModelError: it cannot be parsed.
    """

    def __init__(self, template: str) -> None:
        self.nodes = parse(template)

    def render(self, data: dict[str, Any]) -> str:
        """The text for these values.

        Raises:
            ModelError: a value has not the kind that the template takes.
        """
        return render(self.nodes, data)

    def names(self) -> frozenset[str]:
        """The names of all fields and variables, in lower case."""
        return frozenset(name.lower() for name in _names(self.nodes))


def render(nodes: Sequence[Node], data: dict[str, Any]) -> str:
    """The text of nodes for these values; see `GoTemplate.render`."""
    run = _Run(data)
    try:
        run.walk(nodes, data)
    except _Leave as jump:
        raise template_error(f"'{jump.kind}' outside a range") from jump
    return "".join(run.written)


class _Leave(Exception):
    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class _Run:
    def __init__(self, data: Any) -> None:
        self.written: list[str] = []
        self._variables: list[tuple[str, Any]] = [("$", data)]

    def walk(self, nodes: Sequence[Node], dot: Any) -> None:
        for node in nodes:
            match node:
                case Text(text):
                    self.written.append(text)
                case Pipe():
                    value = self._pipe(node, dot)
                    if not node.variables:
                        self.written.append("<no value>" if value is None else shown(value))
                case Branch():
                    self._branch(node, dot)
                case Jump(kind):
                    raise _Leave(kind)

    def _branch(self, node: Branch, dot: Any) -> None:
        scope = len(self._variables)
        if node.kind == "range":
            self._range(node, dot)
        else:
            value = self._pipe(node.pipe, dot)
            if truth(value):
                self.walk(node.body, value if node.kind == "with" else dot)
            elif node.otherwise is not None:
                self.walk(node.otherwise, dot)
        del self._variables[scope:]

    def _range(self, node: Branch, dot: Any) -> None:
        value = self._pipe(node.pipe, dot)  # its variables hold the whole where there is nothing to go through
        names = node.pipe.variables
        if isinstance(value, int) and len(names) > 1:
            raise template_error("a range over a number has one variable")
        items = list(_items(value))
        try:
            for key, item in items:
                self._turn(node, names, (item,) if len(names) == 1 else (key, item), item)
            if not items and node.otherwise is not None:
                self.walk(node.otherwise, dot)
        except _Leave as jump:
            if jump.kind != "break":
                raise

    def _turn(self, node: Branch, names: Sequence[str], given: Sequence[Any], item: Any) -> None:
        """One turn of a range."""
        scope = len(self._variables)
        for name, value in zip(names, given, strict=False):
            self._set(name, value, node.pipe.declares)
        try:
            self.walk(node.body, item)
        except _Leave as jump:
            if jump.kind == "break":
                raise
        finally:
            del self._variables[scope:]

    def _pipe(self, pipe: Pipe, dot: Any) -> Any:
        value, given = None, False
        for command in pipe.commands:
            value = self._command(command, dot, [value] if given else [])
            given = True
        for name in pipe.variables:
            self._set(name, value, pipe.declares)
        return value

    def _command(self, command: Sequence[Operand], dot: Any, last: list[Any]) -> Any:
        first, *arguments = command
        if not isinstance(first, Name):
            return self._value(first, dot)
        values = chain((self._value(argument, dot) for argument in arguments), last)
        if first.name in ("and", "or"):
            return deciding(first.name, values)
        return call(first.name, list(values))

    def _value(self, operand: Operand, dot: Any) -> Any:
        match operand:
            case Constant(value):
                return value
            case Dot():
                return dot
            case Variable(name):
                return self._variables[self._place(name)][1]
            case Chain(start, fields):
                value = self._value(start, dot)
                for field in fields:
                    value = _field(value, field)
                return value
            case Pipe():
                return self._pipe(operand, dot)
            case Name(name):
                return call(name, [])

    def _set(self, name: str, value: Any, declares: bool) -> None:
        if declares:
            self._variables.append((name, value))
            return
        self._variables[self._place(name)] = (name, value)

    def _place(self, name: str) -> int:
        places = [index for index, (known, _) in enumerate(self._variables) if known == name]
        if not places:  # declared in a branch that was not taken
            raise template_error(f"variable '{name}' without a value")
        return places[-1]


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    if value is None:
        return
    if isinstance(value, list):
        yield from enumerate(value)
    elif isinstance(value, dict) and not isinstance(value, Struct):
        yield from ((key, value[key]) for key in sorted(value))
    elif isinstance(value, int) and not isinstance(value, bool):
        yield from ((number, number) for number in range(value))
    else:
        raise template_error(f"a range over a {type(value).__name__}")


def _field(value: Any, field: str) -> Any:
    if isinstance(value, Struct):
        if field not in value:
            raise template_error(f"no field '{field}'", f"Its fields are {', '.join(value)}.")
        return value[field]
    if isinstance(value, dict):
        return value.get(field)
    raise template_error(f"field '{field}' of a {kind_of(value)}")


def _names(nodes: Sequence[Node] | Sequence[Operand]) -> Iterator[str]:
    for node in nodes:
        match node:
            case Pipe():
                for command in node.commands:
                    yield from _names(command)
            case Branch():
                yield from _names([node.pipe])
                yield from _names([*node.body, *(node.otherwise or ())])
            case Chain(start, fields):
                yield from fields
                yield from _names([start])
            case Variable(name):
                yield name
            case _:
                pass
