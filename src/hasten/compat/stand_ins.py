"""Module names that stand for hasten's while a script runs, and are gone afterwards.

``unsloth`` and ``unsloth_zoo`` with all their submodules are answered by a finder on `sys.meta_path`. ``trl`` is a
module object of its own that hands every name on to the real one, except `SFTTrainer` and `SFTConfig`; the real
module's attributes are never touched, and what trl imports inside itself is its own.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from hasten.compat.notes import say_once
from hasten.compat.offered import NotOffered

_ROOTS = ("unsloth", "unsloth_zoo")
_COMPAT = "hasten.compat"
_HOMES = {
    "unsloth.chat_templates": "hasten.compat.chat_templates",
    "unsloth.trainer": "hasten.compat.trainer",
    "unsloth.save": "hasten.compat.saving",
}
_SUBMODULES = {
    "unsloth": (
        "chat_templates",
        "dataprep",
        "kernels",
        "models",
        "registry",
        "save",
        "tokenizer_utils",
        "trainer",
        "utils",
    ),
    "unsloth_zoo": ("utils", "rl_replacements", "vision_utils", "dataset_utils", "tokenizer_utils"),
}
_ELSEWHERE = {("unsloth_zoo.utils", "Version"): ("packaging.version", "Version")}
_OURS = ("SFTConfig", "SFTTrainer")


class StandIn(ModuleType):
    """A module under a foreign name whose names are looked up in hasten's."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") and name != "__version__":
            raise AttributeError(f"module '{self.__name__}' has no attribute '{name}'")
        if name in _SUBMODULES.get(self.__name__, ()):
            return importlib.import_module(f"{self.__name__}.{name}")
        if (self.__name__, name) in _ELSEWHERE:
            module, attribute = _ELSEWHERE[self.__name__, name]
            return getattr(importlib.import_module(module), attribute)
        for home in (_HOMES.get(self.__name__), _COMPAT):
            if home is not None:
                module = importlib.import_module(home)
                if hasattr(module, name):
                    return getattr(module, name)
        return NotOffered(f"{self.__name__}.{name}", "See docs/compat.md for what is offered.")

    def __dir__(self) -> list[str]:
        return sorted({*dir(importlib.import_module(_HOMES.get(self.__name__, _COMPAT))), *vars(self)})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] not in _ROOTS:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class TrlStandIn(ModuleType):
    """Stands under the name ``trl``.

    Args:
        real: the real module.
    """

    def __init__(self, real: ModuleType) -> None:
        super().__init__(real.__name__, real.__doc__)
        self._real = real
        for name in ("__spec__", "__loader__", "__package__", "__path__", "__file__"):
            setattr(self, name, getattr(real, name, None))

    def __getattr__(self, name: str) -> Any:
        if name in _OURS:
            return getattr(importlib.import_module("hasten.compat.trainer"), name)
        return getattr(self._real, name)

    def __dir__(self) -> list[str]:
        return sorted({*dir(self._real), *_OURS})


@contextmanager
def stand_ins() -> Iterator[None]:
    """Inside the block the foreign names mean hasten; afterwards everything is as it was."""
    if _is_installed("unsloth"):
        say_once("unsloth is installed, but hasten stands in for it: this run does not use it")
    before = _take_out()
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    trl = importlib.import_module("trl") if _is_installed("trl") else None
    if trl is not None:
        sys.modules["trl"] = TrlStandIn(trl)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        if trl is not None:
            sys.modules["trl"] = trl
        _take_out()
        sys.modules.update(before)


def _take_out() -> dict[str, ModuleType]:
    names = [name for name in sys.modules if name.partition(".")[0] in _ROOTS]
    return {name: sys.modules.pop(name) for name in names}


def _is_installed(name: str) -> bool:
    return name in sys.modules or importlib.util.find_spec(name) is not None
