"""Modelfiles: written, and read as Ollama reads them, so that what was written is known to arrive.

A value is text in three quotes, in one, or in none. Nothing can be escaped, so of the three forms the first is taken
that reads back equal; what no form can carry (some text with three quotes in it, characters that Ollama's reader drops)
is refused. Templates need none of this: `hasten.export.ollama.compose.literal` spells such characters in Go.

The format: https://docs.ollama.com/modelfile.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from hasten.errors import CapabilityError, ConfigError, ModelError

ADAPTERS_UNTIL = (0, 34, 1)
"""From this version on, `ollama create` refuses ADAPTER lines: ollama/ollama pull request 14969, as reported in
generative-computing/mellea issue 1651. (docs.ollama.com/import still describes them.)"""
_INSTRUCTIONS = ("from", "license", "template", "system", "adapter", "draft", "renderer", "parser", "parameter")
_INSTRUCTIONS += ("message", "requires")
_FORMS = ('"""{}"""', '"{}"', "{}")
_NUMBERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}
"""Transformers' names and Ollama's."""
_SAMPLING = {"temperature": 1.0, "top_k": 50, "top_p": 1.0}
"""What transformers samples with where a model's configuration leaves it open."""
_PARAMETER = re.compile(r"[A-Za-z0-9_]+")
_BEGINNING = re.compile(r"\s*([A-Za-z]+)[ \t]")


@dataclass
class Modelfile:
    """What a Modelfile says.

    Attributes:
        source: the model, by the path of a file (FROM).
        template: in Go's language; None if it has none.
        system: the default system text.
        adapter: the path of an adapter.
        parameters: by name; those that may be given several times, as `stop`, are lists.
    """

    source: str
    template: str | None = None
    system: str | None = None
    adapter: str | None = None
    parameters: dict[str, str | list[str]] = field(default_factory=dict)


def modelfile(
    gguf_name: str,
    template: str | None,
    stops: Sequence[str],
    system: str | None = None,
    parameters: Mapping[str, float] | None = None,
    *,
    adapter: str | None = None,
    comments: Sequence[str] = (),
) -> str:
    """The text of a Modelfile.

    Args:
        gguf_name: the model's file, beside the Modelfile.
        template: in Go's language; None leaves it out.
        stops: texts that end an answer.
        system: the default system text; None leaves it out.
        parameters: by Ollama's names.
        adapter: a GGUF adapter beside the Modelfile, for versions that take one (`require_adapters`).
        comments: lines for people, at the top.

    Raises:
        ConfigError: a name is no file's name, or a text cannot be written in a Modelfile.
    """
    made = Modelfile(_beside(gguf_name), template, system, None if adapter is None else _beside(adapter))
    made.parameters = {name: _number(value) for name, value in (parameters or {}).items()}
    if stops:
        made.parameters["stop"] = list(dict.fromkeys(stops))
    lines = [f"# {line}".rstrip() for comment in comments for line in comment.splitlines()]
    lines.append(_line("FROM", made.source, _FORMS[2:]))
    if adapter is not None:
        lines.append(_line("ADAPTER", str(made.adapter), _FORMS[2:]))
    if template is not None:
        lines.append(_line("TEMPLATE", template, _FORMS))
    if system is not None:
        lines.append(_line("SYSTEM", system, _FORMS))
    for name, value in made.parameters.items():
        if not _PARAMETER.fullmatch(name):
            raise ConfigError(f"parameter '{name}'", "no name", "Letters, digits and '_' make one.", "Check its name.")
        several = value if isinstance(value, list) else [value]
        forms = _FORMS[1:2] + _FORMS[:1] + _FORMS[2:] if isinstance(value, list) else _FORMS[2:]
        lines += [_line(f"PARAMETER {name}", text, forms) for text in several]
    text = "\n".join(lines) + "\n"
    assert parse(text) == made, "every line reads back equal"
    return text


def parse(text: str) -> Modelfile:
    """What Ollama reads in a Modelfile.

    Raises:
        ModelError: it is none.
    """
    found: dict[str, str] = {}
    parameters: dict[str, str | list[str]] = {}
    for name, value in _instructions(text.removeprefix("\ufeff")):
        if name == "parameter":
            key, _, number = value.partition(" ")
            _add(parameters, key, number)
        else:
            found[name] = value
    if "from" not in found:
        raise _unreadable("no FROM line", "The model's file is named in one.")
    return Modelfile(found["from"], found.get("template"), found.get("system"), found.get("adapter"), parameters)


def require_adapters(version: str) -> None:
    """Refuse ADAPTER lines for versions of Ollama that take none.

    Raises:
        CapabilityError: the version takes none, or it cannot be read.
    """
    numbers = re.match(r"v?(\d+)\.(\d+)\.(\d+)", version)
    if not numbers or tuple(map(int, numbers.groups())) >= ADAPTERS_UNTIL:
        until = ".".join(map(str, ADAPTERS_UNTIL))
        raise CapabilityError(
            f"Ollama {version}",
            "an ADAPTER line",
            f"Versions before {until} create models of a GGUF and an adapter.",
            "Export the merged model.",
        )


def sampling(generation_config: Any, num_ctx: int | None = None) -> dict[str, float]:
    """Ollama's parameters for what a model's generation configuration says.

    A configuration that samples and leaves some numbers open means transformers' defaults, which are not Ollama's, so
    they are written out. One that says nothing of sampling leaves all to Ollama.

    Args:
        generation_config: transformers' `GenerationConfig`, or what its file holds.
        num_ctx: the context window, if it is to be set.

    Returns:
        Numbers by Ollama's names.

    Raises:
        ConfigError: `num_ctx` is not a positive whole number.
    """
    held: dict[str, Any] = {}
    if isinstance(generation_config, Mapping):
        held = dict(generation_config)
    elif generation_config is not None:
        held = generation_config.to_dict()
    given = {name: held[name] for name in _NUMBERS if held.get(name) is not None}
    if held.get("do_sample"):
        given = {**_SAMPLING, **given}
    elif held.get("do_sample") is False:
        given = {**{name: value for name, value in given.items() if name == "repetition_penalty"}, "temperature": 0.0}
    made = {_NUMBERS[name]: value for name, value in given.items()}
    if num_ctx is not None:
        if isinstance(num_ctx, bool) or not isinstance(num_ctx, int) or num_ctx < 1:
            raise ConfigError("num_ctx", repr(num_ctx), "It is a positive whole number.", "Leave it out or set one.")
        made["num_ctx"] = num_ctx
    return made


def _beside(name: str) -> str:
    """The path of a file in the Modelfile's folder."""
    plain = PurePosixPath(name).name
    if not name or name != plain or name in (".", "..") or "\\" in name or name != name.strip():
        raise ConfigError(
            "the GGUF file's name", repr(name), "It lies in the Modelfile's folder.", "Give its name without a folder."
        )
    return f"./{name}"


def _number(value: float) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError("a parameter of Ollama", repr(value), "hasten writes numbers.", "Leave it out.")
    return repr(int(value)) if isinstance(value, int) or float(value).is_integer() else repr(float(value))


def _line(instruction: str, text: str, forms: Sequence[str]) -> str:
    """One instruction, in the first form that reads back equal."""
    name, _, key = instruction.lower().partition(" ")
    for form in forms:
        line = f"{instruction} {form.format(text)}" if "{}" != form else f"{instruction} {text}"
        try:
            read = list(_instructions(f"{line}\nFROM x\n"))
        except ModelError:
            continue
        if read == [(name, f"{key} {text}" if key else text), ("from", "x")]:
            return line
    raise ConfigError(
        f"the Modelfile's {instruction}",
        repr(text if len(text) < 200 else text[:200] + "..."),
        "Ollama reads text between quotes, cannot escape any, and drops characters that are not printable.",
        "Change that text, or send it with every request.",
    )


def _add(parameters: dict[str, str | list[str]], name: str, value: str) -> None:
    if name == "stop":
        held = parameters.setdefault(name, [])
        assert isinstance(held, list)
        held.append(value)
    else:
        parameters[name] = value


def _instructions(text: str) -> list[tuple[str, str]]:
    """Instructions in lower case with their values; a parameter's value is its name, a blank, and its own.

    A value ends with the line, unless it begins with quotes that are still open there.
    """
    found: list[tuple[str, str]] = []
    place = 0
    while True:
        blanks = re.compile(r"(?:[ \t\r\n]+|#[^\r\n]*(?:[\r\n]|$))*").match(text, place)
        place = blanks.end() if blanks else place
        if place >= len(text):
            return found
        match = _BEGINNING.match(text, place)
        if match is None or match[1].lower() not in _INSTRUCTIONS:
            raise _unreadable(repr(text[place : place + 40]), f"A line begins with {', '.join(_INSTRUCTIONS)}.")
        name, place, key = match[1].lower(), match.end(), ""
        if name in ("parameter", "message"):
            word = re.compile(r"([A-Za-z0-9_]+)[ \t]").match(text, place)
            if word is None:
                raise _unreadable(repr(text[place : place + 40]), f"A {name} has a name and a value.")
            key, place = word[1] + " ", word.end()
        value, place = _value(text, place)
        found.append((name, key + value))


def _value(text: str, place: int) -> tuple[str, int]:
    """The value that begins at a place, and where the next line begins."""
    stops = (match.start() for match in re.compile(r"[\r\n]|$").finditer(text, place))
    for stop in stops:
        raw = "".join(c for c in text[place:stop] if c.isprintable() or c in "\r\n\t").strip()
        value = _unquoted(raw)
        if value is not None:
            return value, stop + 1
    raise _unreadable(repr(text[place : place + 40]), "Quotes that are opened are closed.")


def _unquoted(raw: str) -> str | None:
    """A value without its quotes; None while they are open."""
    for quotes in ('"""', '"'):
        if raw.startswith(quotes):
            closed = len(raw) >= 2 * len(quotes) and raw.endswith(quotes)
            return raw[len(quotes) : -len(quotes)] if closed else None
    return raw


def _unreadable(value: str, rule: str) -> ModelError:
    return ModelError("the Modelfile", value, rule, "See https://docs.ollama.com/modelfile.")
