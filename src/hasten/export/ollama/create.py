"""Creating a model in a running Ollama of what was exported; where none runs, the command to type."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from hasten.errors import ConfigError, ModelError, RunError, StorageError
from hasten.export.ollama.modelfile import parse, require_adapters
from hasten.export.ollama.server import Progress, Server, no_progress

FILES_SINCE = (0, 5, 5)
"""The first version whose /api/create takes files; earlier ones take a Modelfile through the command alone."""
_PART = "[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"
_NAME = re.compile(
    "(?:[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}/(?=[^/]*/))?"  # a host, in front of a namespace
    "(?:[A-Za-z0-9_][A-Za-z0-9_-]{0,79}/)?"  # a namespace, which has no dots
    f"{_PART}(?::{_PART})?"  # a model and its tag
)


@dataclass(frozen=True)
class Created:
    """What became of a request to create a model.

    Attributes:
        name: of the model.
        command: that makes it, to be typed; empty where it has been made.
        version: of the server that made it; empty where it has not been made.
        why: it has not been made; empty where it has.
    """

    name: str
    command: str = ""
    version: str = ""
    why: str = ""


def require_name(name: str) -> str:
    """Refuse a model name that Ollama would refuse.

    Raises:
        ConfigError: it is none.
    """
    if not _NAME.fullmatch(name) or ".." in name:
        rule = "A name is [namespace/]model[:tag], of letters, digits, '_', '-' and '.', with a letter or digit first."
        raise ConfigError("the Ollama model's name", repr(name), rule, "For example: my-model, me/my-model:v1.")
    return name


def create(
    name: str, folder: Path, file: str = "Modelfile", *, host: str | None = None, progress: Progress = no_progress
) -> Created:
    """Create a model in a running Ollama of a Modelfile and the GGUF file beside it.

    Args:
        name: of the model.
        folder: with both files.
        file: the Modelfile's name.
        host: where Ollama listens; None is its own setting or its default.
        progress: is called while bytes are read and sent.

    Raises:
        ConfigError: the name or the address is none.
        CapabilityError: the Modelfile has an ADAPTER line, which the server's version does not take.
        ModelError: the Modelfile cannot be read.
        StorageError: a file is missing.
        RunError: the server refuses, or has something else than what was sent.
    """
    require_name(name)
    path = folder / file
    made = parse(_text(path))
    gguf = _beside(folder, made.source)
    server = Server(host)
    version = server.version()
    command = f"ollama create {shlex.quote(name)} -f {shlex.quote(str(path))}"
    if version is None:
        return Created(name, command, why=f"no Ollama answers at {server.address} (OLLAMA_HOST names another place)")
    if made.adapter is not None:
        require_adapters(version)
    if _numbers(version) < FILES_SINCE or made.adapter is not None:
        if shutil.which("ollama") is None:
            why = f"Ollama {version} at {server.address} makes it through the command `ollama` alone, which is not here"
            return Created(name, command, why=why)
        _by_command(name, path, server.address)
    else:
        server.create(name, gguf, made, progress)
        server.require(name, made)
    return Created(name, version=version)


def _by_command(name: str, modelfile: Path, address: str) -> None:
    """Create a model through the `ollama` command."""
    done = subprocess.run(
        ["ollama", "create", name, "-f", str(modelfile)],
        check=False,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "OLLAMA_HOST": address},
    )
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise RunError("`ollama create`", said[0], "The model was not created.", "Run the command by hand.")


def _beside(folder: Path, source: str) -> Path:
    """The model's file, which lies in the Modelfile's folder."""
    name = source.removeprefix("./")
    if "/" in name or "\\" in name or name in ("", ".", ".."):
        rule = "hasten creates models of a file beside the Modelfile."
        raise ConfigError("the Modelfile's FROM", repr(source), rule, "Write FROM ./NAME.gguf.")
    path = folder / name
    if not path.is_file():
        raise StorageError(str(path), "no such file", "The Modelfile names it in FROM.", "Export the GGUF file first.")
    return path


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")  # newlines as they are
    except FileNotFoundError as cause:
        raise StorageError(str(path), "no such file", "It says what to create.", "Export for Ollama first.") from cause
    except UnicodeDecodeError as cause:
        raise ModelError(str(path), "not UTF-8", "Modelfiles are UTF-8.", "Export for Ollama again.") from cause


def _numbers(version: str) -> tuple[int, ...]:
    """A version for comparing; one that is none (a development build) is newer than all."""
    match = re.match(r"v?(\d+)\.(\d+)\.(\d+)", version)
    numbers = tuple(map(int, match.groups())) if match else (0, 0, 0)
    return numbers if any(numbers) else (1 << 30,)
