"""Settings as dataclasses: each component owns its own, this file checks all of them alike.

A setting is a dataclass field made by `option`, which carries its help text, its allowed values and its bounds. YAML
files, command-line flags and keyword arguments all end here, so a field behaves the same wherever it comes from, and
every problem of a configuration is collected before any is shown.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, cast

from hasten.errors import ConfigError, ConfigErrors, did_you_mean

T = TypeVar("T")


def option(default: Any, help: str, *, low: float | None = None, high: float | None = None) -> Any:  # noqa: A002
    """Declare one setting.

    Args:
        default: its default; a list is copied for every instance.
        help: one line for `--help` and the documentation.
        low: the smallest allowed number.
        high: the largest allowed number.
    """
    metadata = {"help": help, "low": low, "high": high}
    if isinstance(default, list):
        items = cast(list[object], default)
        return dataclasses.field(default_factory=lambda: list(items), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def section(cls: type[Any], help: str) -> Any:  # noqa: A002
    """Declare a nested group of settings."""
    return dataclasses.field(default_factory=cls, metadata={"help": help})


def build(cls: type[T], values: Mapping[str, Any], path: str = "") -> T:
    """Make a settings object from plain values (as YAML gives them).

    Args:
        cls: a dataclass whose fields were made by `option` and `section`.
        values: field name to value; missing fields keep their defaults.
        path: prefix for field names in messages.

    Raises:
        ConfigErrors: every unknown field, wrong type and value out of bounds, all at once.
    """
    problems: list[ConfigError] = []
    made = _build(cls, values, path, problems)
    if problems:
        raise ConfigErrors(problems)
    return made


def check(settings: object, path: str = "") -> None:
    """Check a settings object that was made by hand, and settle its values in place (``"2e-4"`` becomes a number).

    Raises:
        ConfigErrors: as `build`; the object is unchanged then.
    """
    problems: list[ConfigError] = []
    settled = _settle(settings, path, problems)
    if problems:
        raise ConfigErrors(problems)
    for owner, name, value in settled:
        setattr(owner, name, value)


@dataclasses.dataclass(frozen=True)
class Declared:
    """How a leaf setting was declared."""

    annotation: Any
    metadata: Mapping[str, Any]


def fields(settings: object, path: str = "") -> Iterator[tuple[str, type, Any, Declared]]:
    """All leaf settings of an object, depth first: (dotted name, owner class, value, declaration)."""
    cls = type(settings)
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cast(Any, settings)):
        value = getattr(settings, field.name)
        name = _join(path, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields(value, name)
        else:
            yield name, cls, value, Declared(hints[field.name], field.metadata)


def describe(annotation: Any) -> str:
    """A type annotation in the words of a user: ``int``, ``'bf16' or 'fp32'``, ``list of text``."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " or ".join(repr(argument) for argument in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join("nothing" if argument is type(None) else describe(argument) for argument in arguments)
    if origin is list:
        return f"list of {describe(arguments[0])}"
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _build(cls: type[T], values: Mapping[str, Any], path: str, problems: list[ConfigError]) -> T:
    hints = typing.get_type_hints(cls)
    declared = {field.name: field for field in dataclasses.fields(cast(Any, cls))}
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        full = _join(path, str(name))
        if name not in declared:
            known = ", ".join(declared)
            remedy = did_you_mean(str(name), declared, "Remove it.")
            problems.append(ConfigError(full, "unknown setting", f"Known here: {known}.", remedy))
            continue
        kind = hints[name]
        if not dataclasses.is_dataclass(kind):
            arguments[name] = _convert(value, kind, declared[name].metadata, full, problems)
        elif value is None:  # `lora:` with nothing below it
            continue
        elif isinstance(value, Mapping):
            arguments[name] = _build(cast(type[Any], kind), cast(Mapping[str, Any], value), full, problems)
        else:
            problems.append(_no_group(full, value))
    return cls(**arguments)


def _settle(settings: Any, path: str, problems: list[ConfigError]) -> list[tuple[Any, str, Any]]:
    """What a checked object's fields become: (owner, field, value)."""
    hints = typing.get_type_hints(cast(type[Any], type(settings)))
    settled: list[tuple[Any, str, Any]] = []
    for field in dataclasses.fields(settings):
        kind, value, full = hints[field.name], getattr(settings, field.name), _join(path, field.name)
        if not dataclasses.is_dataclass(kind):
            settled.append((settings, field.name, _convert(value, kind, field.metadata, full, problems)))
        elif isinstance(value, cast(type[Any], kind)):
            settled += _settle(value, full, problems)
        elif isinstance(value, Mapping):
            made = _build(cast(type[Any], kind), cast(Mapping[str, Any], value), full, problems)
            settled.append((settings, field.name, made))
        else:
            problems.append(_no_group(full, value))
    return settled


def _no_group(path: str, value: object) -> ConfigError:
    name = path.rpartition(".")[2]
    return ConfigError(path, repr(value), "This is a group of settings.", f"Write its fields below `{name}:`.")


def _convert(value: Any, kind: Any, metadata: Mapping[str, Any], path: str, problems: list[ConfigError]) -> Any:
    try:
        converted = _coerce(value, kind)
    except (TypeError, ValueError):
        problems.append(ConfigError(path, repr(value), f"Allowed: {describe(kind)}.", _remedy(value, kind)))
        return value
    low, high = metadata.get("low"), metadata.get("high")
    if isinstance(converted, (int, float)) and not isinstance(converted, bool):
        if low is not None and converted < low:
            problems.append(ConfigError(path, repr(value), f"It must be at least {low}.", "Raise it."))
        if high is not None and converted > high:
            problems.append(ConfigError(path, repr(value), f"It must be at most {high}.", "Lower it."))
    return converted


def _remedy(value: object, kind: Any) -> str:
    kinds = typing.get_args(kind) if typing.get_origin(kind) in (Union, types.UnionType) else (kind,)
    choices = [str(choice) for part in kinds if typing.get_origin(part) is Literal for choice in typing.get_args(part)]
    if str in kinds and isinstance(value, (int, float)):
        return "Put it in quotes."
    return did_you_mean(str(value), choices, "Change it.")


def _number(value: Any) -> float:
    # YAML 1.1 reads 2e-4 (no dot) as text; it is a number to everybody else.
    if isinstance(value, bool) or not math.isfinite(number := float(value)):
        raise ValueError
    return number


def _whole(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value  # not through a float, which holds 53 bits
    number = _number(value)
    if number != int(number):
        raise ValueError
    return int(number)


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _text(value: Any) -> str:
    if type(value) is datetime.date:  # YAML reads 2026-01-31 as a day
        return value.isoformat()
    if not isinstance(value, str):
        raise TypeError
    return value


_SCALARS: dict[Any, Callable[[Any], Any]] = {float: _number, int: _whole, bool: _truth, str: _text}


def _coerce(value: Any, kind: Any) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if isinstance(value, bool):  # YAML 1.1 reads a bare on or off as truth
            value = "on" if value else "off"
        if value not in arguments:
            raise ValueError
        return value
    if origin in (Union, types.UnionType):
        return _coerce_union(value, arguments)
    if origin is list:
        items = cast(Sequence[Any], value if isinstance(value, (list, tuple)) else [value])
        return [_coerce(item, arguments[0]) for item in items]
    return _SCALARS[kind](value)


def _coerce_union(value: Any, kinds: Sequence[Any]) -> Any:
    if value is None and type(None) in kinds:
        return None
    for kind in kinds:
        if kind is not type(None):
            try:
                return _coerce(value, kind)
            except (TypeError, ValueError):
                continue
    raise ValueError
