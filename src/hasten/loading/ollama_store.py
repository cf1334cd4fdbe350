"""Models of a local Ollama: manifests that name layers, and the layers as files named by their SHA-256.

    models/manifests/registry.ollama.ai/library/NAME/TAG     JSON: layers with mediaType, digest, size
    models/blobs/sha256-...                                   weights (a GGUF), template, system text, parameters

A name is ``ollama:NAME[:TAG]``, where NAME may carry a namespace and a host as in Ollama. The store is where Ollama
keeps it: the folder its own variable ``OLLAMA_MODELS`` names, or else its documented places. Nothing is written there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hasten.errors import ModelError, did_you_mean

PREFIX = "ollama:"
_HOST, _NAMESPACE, _TAG = "registry.ollama.ai", "library", "latest"
_PART = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$")
_HOST_PART = re.compile(r"^[A-Za-z0-9][A-Za-z0-9.-]{0,127}(:[0-9]{1,5})?$")
_DIGEST = re.compile(r"^sha256[:-]([0-9a-f]{64})$")
_MEDIA = "application/vnd.ollama.image."
_READ_BYTES = 1 << 20
_BEGINNING = 64
_SMALL = 1 << 22
"""No manifest, template or parameter file is larger (bytes)."""


@dataclass(frozen=True)
class OllamaModel:
    """A model of the store, its layers checked."""

    name: str
    """As Ollama shows it: NAME:TAG."""
    digest: str
    """SHA-256 of the manifest, which names all layers: the model's content."""
    weights: Path
    """The GGUF."""
    system: str | None = None
    template: str | None = None
    """In Go's template syntax."""
    parameters: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What is kept, and what is not used, one sentence each."""

    @property
    def stem(self) -> str:
        """The name as a part of a file name."""
        return re.sub(r"[^A-Za-z0-9._-]", "-", self.name)


def stores() -> list[Path]:
    """Where a store may be: the folder of Ollama's own setting, or else its documented places."""
    set_to = os.environ.get("OLLAMA_MODELS")
    if set_to:
        return [Path(set_to).expanduser()]
    return [Path.home() / ".ollama" / "models", Path("/usr/share/ollama/.ollama/models")]


def find_manifest(name: str, store: Path | None = None) -> Path:
    """The manifest of ``ollama:NAME[:TAG]``.

    Args:
        name: with or without the prefix.
        store: the store's folder (the one with ``manifests`` and ``blobs``); None: where Ollama keeps it.

    Raises:
        ModelError: no store, no such model, or no name of one.
    """
    parts = _parts(name)
    places = [store] if store is not None else stores()
    present = [place for place in places if (place / "manifests").is_dir()]
    if not present:
        raise ModelError(
            name,
            f"no Ollama store in {' or '.join(map(str, places))}",
            "It holds the folders 'manifests' and 'blobs'.",
            "Set OLLAMA_MODELS as for Ollama itself, or name the .gguf file.",
        )
    for place in present:
        manifest = (place / "manifests").joinpath(*parts)
        if manifest.is_file():
            return manifest
    known = sorted({shown for place in present for shown in _names(place)})
    listed = f"In the store are {', '.join(known[:8])}{' ...' if len(known) > 8 else ''}." if known else "It is empty."
    wanted = _shown(parts)
    raise ModelError(
        name,
        f"no such model in {' or '.join(map(str, present))}",
        listed,
        did_you_mean(wanted, known, f"Run `ollama pull {wanted}` first, or `ollama list` to see what is there."),
    )


def is_manifest(path: Path) -> bool:
    """Whether a file is a manifest of a store, by where it lies; a tag may end in .gguf, so then by how it begins."""
    if len(path.parts) <= 5 or path.parts[-5] != "manifests":
        return False
    if path.suffix.lower() != ".gguf":
        return True
    try:
        with path.open("rb") as file:
            return file.read(_BEGINNING).lstrip().startswith(b"{")  # a GGUF begins with GGUF
    except OSError:  # whoever reads it says so
        return False


def name_of(manifest: Path) -> str:
    """What a manifest's model is called, as hasten takes it: ``ollama:model:tag``."""
    return PREFIX + _shown(manifest.parts[-4:])


def read_manifest(path: Path) -> OllamaModel:
    """A model by its manifest, every layer that is used checked against its digest.

    Raises:
        ModelError: the manifest is damaged, a layer is missing or another than the manifest says, or the model is not
            one GGUF (an adapter on another model, several files, safetensors).
    """
    store, shown = path.parents[4], _shown(path.parts[-4:])
    content = _small(path, shown)
    try:
        manifest = json.loads(content)
        layers = [(str(each["mediaType"]), str(each["digest"])) for each in manifest["layers"]]
    except (ValueError, LookupError, TypeError) as cause:
        raise ModelError(
            str(path), f"no manifest ({cause})", "A manifest is JSON with layers.", f"Run `ollama pull {shown}` again."
        ) from cause
    by_kind: dict[str, list[str]] = {}
    for media, digest in layers:
        by_kind.setdefault(media.removeprefix(_MEDIA), []).append(digest)
    _require_one_model(shown, by_kind)
    texts = {
        kind: _small(_blob(store, by_kind[kind][0], shown), shown).decode("utf-8", "replace")
        for kind in ("system", "template", "params")
        if by_kind.get(kind)
    }
    parameters = _parameters(texts.get("params"), shown)
    return OllamaModel(
        name=shown,
        digest=hashlib.sha256(content).hexdigest(),
        weights=_blob(store, by_kind["model"][0], shown),
        system=texts.get("system"),
        template=texts.get("template"),
        parameters=parameters,
        notes=_notes(shown, texts, parameters, by_kind),
    )


def _parts(name: str) -> tuple[str, str, str, str]:
    """Host, namespace, model and tag of a name, each proved to be a plain folder name."""
    rest = name.removeprefix(PREFIX).removeprefix("//")
    *folders, last = rest.split("/")
    model, _, tag = last.partition(":")
    namespace = folders.pop() if folders else _NAMESPACE
    host = folders.pop() if folders else _HOST
    parts = (host, namespace, model, tag or _TAG)
    right = _HOST_PART.match(host) and all(_PART.match(part) for part in parts[1:])
    if folders or not right or (":" in last and not tag):
        raise ModelError(
            name,
            "no name of an Ollama model",
            "It is ollama:NAME or ollama:NAME:TAG, of letters, digits, '.', '_' and '-'.",
            "Run `ollama list` to see what is there.",
        )
    return parts


def _shown(parts: tuple[str, ...]) -> str:
    """A name as Ollama shows it: without the host and the namespace that are the usual ones."""
    host, namespace, model, tag = parts
    shown = f"{model}:{tag}"
    if (host, namespace) != (_HOST, _NAMESPACE):
        shown = f"{namespace}/{shown}"
    return shown if host == _HOST else f"{host}/{shown}"


def _names(store: Path) -> Iterator[str]:
    for manifest in (store / "manifests").glob("*/*/*/*"):
        if manifest.is_file():
            yield _shown(manifest.parts[-4:])


def _blob(store: Path, digest: str, shown: str) -> Path:
    """A layer's file; the digest is proved to be one before it becomes part of a path."""
    found = _DIGEST.match(digest)
    if found is None:
        raise ModelError(
            shown,
            f"a layer of digest {digest[:80]!r}",
            "Digests are sha256 and 64 digits.",
            f"Run `ollama pull {shown}`.",
        )
    path = store / "blobs" / f"sha256-{found[1]}"
    content = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_READ_BYTES):
                content.update(block)
    except OSError as cause:
        raise ModelError(
            shown,
            f"layer {path.name[:19]}... cannot be read ({cause.strerror})",
            "All layers that a manifest names belong to the model.",
            f"Run `ollama pull {shown}`, or check the permissions of {store}.",
        ) from cause
    if content.hexdigest() != found[1]:
        raise ModelError(
            shown,
            f"layer {path.name[:19]}... has the SHA-256 {content.hexdigest()[:12]}...",
            "A layer's name is the SHA-256 of its content.",
            f"It is damaged: run `ollama rm {shown}` and `ollama pull {shown}`.",
        )
    return path


def _small(path: Path, shown: str) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_SMALL + 1)
    except OSError as cause:
        reason = f"it cannot be read ({cause.strerror})"
        raise ModelError(str(path), reason, "A model is read from here.", "Check its permissions.") from cause
    if len(content) > _SMALL:
        raise ModelError(
            str(path), "more than 4 MB", "Manifests, templates and parameters are small.", f"Run `ollama pull {shown}`."
        )
    return content


def _require_one_model(shown: str, by_kind: dict[str, list[str]]) -> None:
    if by_kind.get("adapter"):
        raise ModelError(
            shown,
            "an adapter on another model (an ADAPTER line)",
            "A trainable base is one whole model.",
            "Name the model that it was made FROM, and train on that.",
        )
    weights = by_kind.get("model", [])
    if len(weights) == 1:
        return
    found = (
        f"{len(weights)} files of weights" if weights else f"no GGUF among its layers ({', '.join(by_kind) or 'none'})"
    )
    raise ModelError(shown, found, "A trainable base is one GGUF.", "Use the model's Hugging Face folder.")


def _parameters(text: str | None, shown: str) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except ValueError as cause:
        raise ModelError(
            shown, f"parameters that are no JSON ({cause})", "They are an object.", "Pull it again."
        ) from cause
    if not isinstance(value, dict):
        raise ModelError(shown, "parameters that are no JSON object", "They are an object.", "Pull it again.")
    return value


def _notes(shown: str, texts: dict[str, str], parameters: dict[str, Any], by_kind: dict[str, list[str]]) -> list[str]:
    said = []
    if "system" in texts:
        said.append(
            f"'{shown}' has a system text, which is kept and not put into conversations: {texts['system'][:80]!r}"
        )
    if parameters:
        said.append(
            f"'{shown}' has parameters: {', '.join(sorted(parameters))}; sampling is taken over, the rest is kept"
        )
    if "template" in texts:
        said.append(f"'{shown}' has a template of Ollama's; the chat template in its GGUF is used")
    if by_kind.get("projector"):
        said.append(f"'{shown}' reads images; only its language model is loaded")
    return said
