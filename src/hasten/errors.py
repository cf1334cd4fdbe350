"""The errors hasten raises: one root, a category per kind of trouble, one way of reading.

Every message has the same four parts, in this order: the *subject* (a field, a file, a module), the *value* found,
the *rule* it breaks, and the *remedy*. They are kept as attributes, so that programs (`--json`) read the parts and
people read the sentence. Each category is also the standard exception a caller would expect, and has the exit code
that the command line ends with.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any


class HastenError(Exception):
    """Root of everything hasten raises on purpose.

    Args:
        subject: what it is about, e.g. ``lora.targets`` or a path.
        value: what was found, quoted where it is the user's text.
        rule: what would be allowed, as a full sentence.
        remedy: what to do now, as a full sentence.
    """

    exit_code: int = 1

    def __init__(self, subject: str, value: str, rule: str, remedy: str) -> None:
        # Not super(): OSError would take the four parts for its errno, strerror and filename, and lose one in pickle.
        Exception.__init__(self, subject, value, rule, remedy)
        self.subject, self.value, self.rule, self.remedy = subject, value, rule, remedy

    def __str__(self) -> str:
        return f"{self.subject}: {self.value}. {self.rule} {self.remedy}"

    def as_dict(self) -> dict[str, object]:
        """The error for machines: category, its four parts, and the sentence."""
        return {
            "error": type(self).__name__,
            "subject": self.subject,
            "value": self.value,
            "rule": self.rule,
            "remedy": self.remedy,
            "message": str(self),
        }


class ConfigError(HastenError, ValueError):
    """A setting, argument or configuration file is wrong."""

    exit_code = 2


class DataError(HastenError, ValueError):
    """Rows are missing, unreadable or unusable."""

    exit_code = 3


class ModelError(HastenError, ValueError):
    """A model, tokenizer or adapter cannot be found or must not be loaded."""

    exit_code = 4


class CapabilityError(HastenError, NotImplementedError):
    """Something hasten does not offer yet, or not for this model; the remedy names what to use."""

    exit_code = 5


class StorageError(HastenError, OSError):
    """A disk is full, a folder cannot be written, a file is damaged."""

    exit_code = 6


class TrainingError(HastenError, RuntimeError):
    """Training was stopped because its numbers are not worth having."""

    exit_code = 7


class RunError(HastenError, RuntimeError):
    """A run folder is missing, unreadable, or its job is not in the state asked for."""

    exit_code = 8


class MissingPackageError(HastenError, ImportError):
    """An optional package is needed for what was asked."""

    exit_code = 9


class ConfigErrors(ConfigError):
    """All problems of one configuration, shown at once."""

    def __init__(self, problems: Sequence[ConfigError]) -> None:
        first = problems[0]
        super().__init__(first.subject, first.value, first.rule, first.remedy)
        self.problems = tuple(problems)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problems,)

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return str(self.problems[0])
        lines = "\n".join(f"  {number}. {problem}" for number, problem in enumerate(self.problems, 1))
        return f"{len(self.problems)} settings are wrong:\n{lines}"

    def as_dict(self) -> dict[str, object]:
        """As the root's, with every problem under ``problems``."""
        return {**super().as_dict(), "problems": [problem.as_dict() for problem in self.problems]}


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest to a misspelt one, or None when nothing is close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """A remedy sentence: the nearest known name if there is one, otherwise the given sentence."""
    match = nearest(name, known)
    return f"Did you mean '{match}'?" if match else otherwise
