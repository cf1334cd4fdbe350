"""Templates made at random: whatever hasten renders, Go renders as well, to the same text."""

import random

import pytest

from hasten.errors import ModelError
from hasten.export.ollama.go_template import GoTemplate

COUNT = 3000
DATA = {
    "System": "S y",
    "Messages": [
        {"Role": "user", "Content": " a\n"},
        {"Role": "assistant", "Content": ""},
        {"Role": "x", "Content": "é{{"},
    ],
    "N": 3,
    "F": False,
    "E": "",
    "L": ["p", "q"],
    "X": None,
}
VALUES = ".System .N .F .E .L .X .Messages $.N $.System .Content .Role . $ 1 0 true nil (len\u00a0.L) $.L".split(" ")
FUNCTIONS = {
    "not": 1,
    "len": 1,
    "json": 1,
    "index": 2,
    "slice": 3,
    "and": 2,
    "or": 2,
    "eq": 3,
    "ne": 2,
    "lt": 2,
    "ge": 2,
}
FORMATS = ['"%v"', '"<%5s>"', '"%d%%"', '"%q"']
TEXTS = [" ", "\n", "a", "  b \n", "{", "}", "<|x|>", "\t", "- ", "-", "c }"]


class Maker:
    def __init__(self, seed):
        self.random = random.Random(seed)

    def one(self, *choices):
        return self.random.choice(choices)

    def action(self, text):
        return "{{" + self.one("", " ", "- ") + text + self.one("", " ", " -") + "}}"

    def value(self, known):
        return self.one(*VALUES, '"s"', '""', *known).replace("\u00a0", " ")

    def command(self, known, depth=0):
        if depth > 2 or self.random.random() < 0.35:
            return self.value(known)
        name = self.one(*FUNCTIONS, "printf", "print")
        if name == "printf":
            return f"printf {self.one(*FORMATS)} {self.value(known)}"
        arguments = [
            f"({self.command(known, depth + 1)})" if self.random.random() < 0.25 else self.value(known)
            for _ in range(FUNCTIONS.get(name, 2))
        ]
        if self.random.random() < 0.1:
            return f"{arguments.pop()} | {name} {' '.join(arguments)}"
        return f"{name} {' '.join(arguments)}"

    def body(self, known=(), depth=0, in_range=False):
        known, made = list(known), []
        for _ in range(self.random.randint(1, 4)):
            kind = self.random.random()
            if kind < 0.3:
                made.append(self.one(*TEXTS))
            elif kind < 0.55 or depth > 2:
                made.append(self.action(self.command(known)))
            elif kind < 0.62:
                made.append(self.action(f"$x := {self.command(known)}"))
                known.append("$x")
            elif kind < 0.66 and known:
                made.append(self.action(f"{self.one(*known)} = {self.command(known)}"))
            elif kind < 0.7 and in_range:
                made.append(self.action(self.one("break", "continue")))
            else:
                made.append(self.branch(known, depth, in_range))
        return "".join(made)

    def branch(self, known, depth, in_range):
        word, pipe = self.one("if", "range", "with"), self.command(known)
        inner = list(known)
        if word == "range":
            pipe = self.one(".Messages", "$.Messages", ".L", ".N", ".X", ".E", pipe)
        if self.random.random() < 0.3:
            names = ["$i", "$m"] if word == "range" and self.random.random() < 0.7 else ["$m"]
            pipe, inner = f"{', '.join(names)} := {pipe}", [*known, *names]
        text = self.action(f"{word} {pipe}") + self.body(inner, depth + 1, in_range or word == "range")
        if self.random.random() < 0.4:
            if word != "range" and self.random.random() < 0.4:
                text += self.action(f"else {word} {self.command(inner)}") + self.body(inner, depth + 1, in_range)
            text += self.action("else") + self.body(inner, depth + 1, in_range)
        return text + self.action("end")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_go_renders_them_the_same(go_judge, seed):
    maker = Maker(seed)
    templates = [maker.body() for _ in range(COUNT)]
    different, rendered = [], 0
    for template, go in zip(templates, go_judge([{"template": text, "data": DATA} for text in templates]), strict=True):
        try:
            ours = GoTemplate(template).render(DATA)
        except ModelError:  # hasten may refuse more than Go does
            continue
        rendered += 1
        if go["error"] or go["text"] != ours:
            different.append((template, go, ours))
    assert different == []
    assert rendered > COUNT // 10
