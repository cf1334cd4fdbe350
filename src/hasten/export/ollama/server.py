"""A running Ollama, through its documented HTTP API: https://docs.ollama.com/api.

A model is created of a GGUF file in three steps: the file's SHA-256 is asked for (HEAD /api/blobs/sha256:...), the file
is sent if it is not there yet (POST to the same path), and the model is made of it (POST /api/create). What the server
then has is read back (POST /api/show).

The address is Ollama's own setting, OLLAMA_HOST, and otherwise its default.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hasten.errors import ConfigError, RunError, StorageError
from hasten.export.ollama.go_lexer import constant
from hasten.export.ollama.modelfile import Modelfile

PORT = 11434
Progress = Callable[[str, int, int], None]
"""What is being done, the bytes done, and all bytes (0 where they are not known)."""
_CHUNK = 1 << 22
_ANSWERS_IN = 5.0
"""Seconds in which a server that runs says its version."""
_CREATES_IN = 600.0
"""Seconds between two signs of life while a model is created."""
_STOP = re.compile(r"stop[ \t]+(.+)")


def no_progress(what: str, done: int, total: int) -> None:
    """Nothing is shown."""


class Server:
    """An Ollama server.

    Args:
        host: ``[http://]name[:port]``; None is OLLAMA_HOST, and without it this machine and Ollama's port.

    Raises:
        ConfigError: that is no address.
    """

    def __init__(self, host: str | None = None) -> None:
        given = (host or os.environ.get("OLLAMA_HOST") or "").strip().strip("\"'")
        text = given if "://" in given else f"http://{given}"
        try:
            parts = urlsplit(text)
            port = parts.port
            (parts.hostname or "").encode("idna")  # as a connection does
        except ValueError:  # also of a name that IDNA has no form of: UnicodeError
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or parts.path not in ("", "/") or parts.query:
            remedy = "For example: 127.0.0.1:11434, or http://gpu.local:11434."
            raise ConfigError("OLLAMA_HOST", repr(given), "It is [http://]host[:port].", remedy)
        usual = PORT if "://" not in given else {"http": 80, "https": 443}[parts.scheme]
        # 0.0.0.0 and :: are what a server listens on; one reaches it at home.
        name = parts.hostname or "127.0.0.1"
        self._name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(name, name)
        self._port = usual if port is None else port
        self._secure = parts.scheme == "https"
        shown = f"[{self._name}]" if ":" in self._name else self._name
        self.address = f"{parts.scheme}://{shown}:{self._port}"

    def version(self) -> str | None:
        """The server's version; None where none answers.

        Raises:
            RunError: what answers is no Ollama.
        """
        try:
            with self._answer("GET", "/api/version", seconds=_ANSWERS_IN) as answer:
                text = answer.read()
        except OSError:  # nobody listens there
            return None
        except http.client.HTTPException as cause:
            raise self._trouble(f"it answered no HTTP ({cause})", "Ollama says its version there.") from cause
        try:
            return str(json.loads(text)["version"])
        except (ValueError, KeyError, TypeError) as cause:
            raise self._trouble(f"it answered {text[:80]!r}", "Ollama says its version there.") from cause

    def create(self, name: str, gguf: Path, made: Modelfile, progress: Progress = no_progress) -> None:
        """Create a model.

        Args:
            name: checked with `require_name`.
            gguf: the model's file.
            made: what goes with it.
            progress: is called while bytes are read and sent.

        Raises:
            RunError: the server refuses, or the connection breaks.
            StorageError: the file cannot be read.
        """
        digest = _digest(gguf, progress)
        if not self._has(digest):
            self._send(gguf, digest, progress)
        request: dict[str, Any] = {"model": name, "files": {gguf.name: digest}, "stream": True}
        request |= {"template": made.template} if made.template is not None else {}
        request |= {"system": made.system} if made.system is not None else {}
        if made.parameters:
            request["parameters"] = {name: _value(value) for name, value in made.parameters.items()}
        last = ""
        for line in self._lines("/api/create", request):
            last = str(line.get("status", ""))
            progress(last, int(line.get("completed") or 0), int(line.get("total") or 0))
        if last != "success":
            raise self._trouble(f"its last word was '{last}'", "A created model ends with 'success'.")

    def require(self, name: str, made: Modelfile) -> None:
        """Read a model back and compare its template, system text and stops with what was sent.

        Raises:
            RunError: the server has something else.
        """
        (shown,) = self._lines("/api/show", {"model": name})
        # Parameters come as lines with texts quoted as in Go: `stop    "<|im_end|>"`.
        lines = str(shown.get("parameters") or "").splitlines()
        stops = [match[1].strip() for line in lines if (match := _STOP.match(line.strip()))]
        stops = [str(constant("string", stop)) if stop[:1] == stop[-1:] == '"' else stop for stop in stops]
        pairs = [("template", made.template, shown.get("template")), ("system", made.system, shown.get("system"))]
        pairs += [("list of stops", made.parameters.get("stop"), stops)]
        for what, sent, held in pairs:
            if sent is not None and sent != held:
                raise self._trouble(
                    f"the {what} of '{name}' is {str(held)[:200]!r}", f"What was sent is {str(sent)[:200]!r}."
                )

    def _has(self, digest: str) -> bool:
        with self._reached("HEAD", f"/api/blobs/{digest}") as answer:
            if answer.status not in (200, 404):
                raise self._trouble(f"it answered {answer.status} for a blob", "It says 200 or 404.")
            return answer.status == 200

    def _send(self, gguf: Path, digest: str, progress: Progress) -> None:
        size = gguf.stat().st_size
        with gguf.open("rb") as file:
            body = _counted(file, size, progress)
            length = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
            with self._reached("POST", f"/api/blobs/{digest}", body, length) as answer:
                text = answer.read()
                if answer.status not in (200, 201):
                    raise self._trouble(f"it refused the file: {_said(text, answer.status)}", "It takes a new file.")

    def _lines(self, path: str, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The objects that a request is answered with, one a line."""
        body = json.dumps(request).encode()
        with self._reached("POST", path, body, {"Content-Type": "application/json"}) as answer:
            if answer.status != 200:
                raise self._trouble(_said(answer.read(), answer.status), f"{path} answers 200.")
            for text in answer if path == "/api/create" else [answer.read()]:
                if not text.strip():
                    continue
                try:
                    line = json.loads(text)
                except ValueError as cause:
                    raise self._trouble(f"it answered {text[:80]!r}", "Every line is a JSON object.") from cause
                if "error" in line:
                    raise self._trouble(str(line["error"]), "The model was not created.")
                yield line

    @contextmanager
    def _reached(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """An answer of a server that is known to run."""
        try:
            with self._answer(method, path, body, headers) as answer:
                yield answer
        except (http.client.HTTPException, OSError) as cause:
            if isinstance(cause, StorageError):
                raise
            raise self._trouble(f"the connection broke ({cause})", f"{method} {path} is answered.") from cause

    @contextmanager
    def _answer(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        seconds: float = _CREATES_IN,
    ) -> Iterator[http.client.HTTPResponse]:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._name, self._port, timeout=seconds)
        try:
            connection.request(method, path, body, headers or {})
            yield connection.getresponse()
        finally:
            connection.close()

    def _trouble(self, value: str, rule: str) -> RunError:
        return RunError(f"Ollama at {self.address}", value, rule, "See its log, or run `ollama create` by hand.")


def _digest(path: Path, progress: Progress) -> str:
    size, found = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        for chunk in _counted(file, size, progress, "hashing"):
            found.update(chunk)
    return f"sha256:{found.hexdigest()}"


def _counted(file: Any, size: int, progress: Progress, what: str = "sending") -> Iterator[bytes]:
    done = 0
    while chunk := file.read(_CHUNK):
        yield chunk
        done += len(chunk)
        progress(what, done, size)


def _value(value: str | list[str]) -> Any:
    if isinstance(value, list):
        return value
    return float(value) if re.search(r"[.eE]", value) else int(value)


def _said(text: bytes, status: int) -> str:
    """What an answer says is wrong."""
    try:
        return str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return f"it answered {status}"
