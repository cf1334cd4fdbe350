"""What is not offered yet: arguments that must keep their default, and names that raise when they are used.

Scripts pass many arguments at their defaults and import many names they never call, so both must be harmless; only the
use of something that is missing is an error, and the error names the argument and what to do instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from hasten.errors import CapabilityError


@dataclass(frozen=True)
class Unoffered:
    """An argument that only its default value is accepted for."""

    defaults: tuple[Any, ...]
    """Values that ask for nothing."""
    remedy: str
    """What to use instead, as a full sentence."""


def require_defaults(where: str, values: Mapping[str, Any], table: Mapping[str, Unoffered]) -> None:
    """Refuse the first argument of a table that was given something else than its default.

    Args:
        where: the function's public name, for the message.
        values: all arguments by name.
        table: the arguments that are not offered.

    Raises:
        CapabilityError: naming argument, value and remedy.
    """
    for name, unoffered in table.items():
        if name in values and not any(_same(values[name], default) for default in unoffered.defaults):
            raise CapabilityError(
                f"{where}({name}=...)", f"{values[name]!r}", "hasten does not offer this yet.", unoffered.remedy
            )


def _same(value: Any, default: Any) -> bool:
    if default is None:
        return value is None
    # 0 is False and 16 is 16.0, but an array must not be compared as a whole.
    return isinstance(value, (bool, int, float, str, dict)) and value == default


class NotOffered:
    """A name that can be imported and passed around; calling it or reading an attribute raises.

    Args:
        name: the name as scripts know it.
        remedy: what to use instead, as a full sentence.
    """

    def __init__(self, name: str, remedy: str) -> None:
        self._name, self._remedy = name, remedy

    def __repr__(self) -> str:
        return f"<{self._name}: not offered by hasten yet>"

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        """Raise: the name is used."""
        raise self._error()

    def __getattr__(self, attribute: str) -> Any:
        # Underscored names are asked for by inspection and copying, not by scripts.
        if attribute.startswith("_"):
            raise AttributeError(attribute)
        raise self._error()

    def __mro_entries__(self, bases: tuple[object, ...]) -> tuple[type, ...]:
        """Refuse to be a base class, with the same message."""
        raise self._error()

    def _error(self) -> CapabilityError:
        return CapabilityError(self._name, "used", "hasten does not offer this yet.", self._remedy)
