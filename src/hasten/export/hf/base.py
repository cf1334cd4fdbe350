"""From a name to weights: a model, an adapter with the base it names, or a run with its adapter.

An adapter is merged into the 16-bit weights of its base where they are at hand, else into what its quantized base
stands for; which of both it was is said.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hasten.errors import HastenError, ModelError, RunError
from hasten.export.hf.adapter_file import CONFIG, WEIGHTS
from hasten.export.hf.dequantized import DequantizedFolder
from hasten.export.hf.merged import MergedWeights
from hasten.export.weights import PlainFolder, Weights
from hasten.loading.model import LoadOptions, find, local_folder
from hasten.loading.ollama_store import PREFIX
from hasten.loading.source import DEMO, Source, read_json
from hasten.runs.folder import RECORD, RunFolder

BASE = "base.json"
"""Beside an exported adapter; what its base was."""
_FIGURES = "quantization.json"
"""Beside a model that `hasten quantize` wrote; it names the original."""
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.gguf", "*.py")


@dataclass(frozen=True)
class Opened:
    """What is exported, and where it comes from."""

    weights: Weights
    """With the adapter merged in, where there is one."""
    base: Weights
    """Without it."""
    base_name: str
    """How the base is called: "demo", a hub id, a folder or a file."""
    revision: str | None = None
    """The hub's commit of the base; None for what is no repository."""
    adapter: Path | None = None
    """The adapter's folder."""
    run: RunFolder | None = None
    """The run that trained it."""
    notes: list[str] = field(default_factory=list)
    """What a reader should know, one sentence each."""


def open_model(name: str | Path, *, base: str | None = None, options: LoadOptions | None = None) -> Opened:
    """Open a model for export. No weight is read, and nothing is downloaded that loading it would not.

    Args:
        name: a run's folder, an adapter's folder, or any model: "demo", a folder, a .gguf file, a hub id.
        base: the model to merge an adapter into, in place of the one that it names.
        options: cache, token and revision; a revision is that of `name`.

    Raises:
        ModelError: nothing usable is there, or the adapter does not fit its base.
        RunError: the run has no adapter.
        CapabilityError: an adapter of a kind whose merge is no sum.
    """
    options = options or LoadOptions()
    folder, run = Path(name).expanduser(), None
    if (folder / RECORD).is_file():
        run = RunFolder.open(folder)
        if not (run.adapter / CONFIG).is_file():
            raise RunError(
                str(folder), "it holds no adapter", "A run saves its adapter at its end.", "Wait for it, or resume it."
            )
        name = run.adapter
    source = find(str(name), options)
    place, revision = _folder(source, options)
    if not (place / CONFIG).is_file():
        if base is not None:
            rule = "A base is what an adapter is merged into."
            raise ModelError(str(name), f"no adapter, and base is '{base}'", rule, "Leave base out.")
        weights, notes = _weights(place, options)
        return Opened(weights, weights, source.name, revision, notes=notes)
    own = replace(options, revision=None)
    chosen = base or _base_name(place)
    if base is None:
        own = replace(own, revision=read_json(place / CONFIG).get("revision") or None)  # type: ignore[arg-type]
    base_source, base_place, base_revision = _find_base(chosen, place, own)
    plain, notes = _weights(base_place, own, explicit=base is not None)
    merged = MergedWeights(plain, place)
    notes = [*notes, *merged.notes]
    if (place / BASE).is_file() and read_json(place / BASE).get("config_sha256") != config_hash(plain.folder):
        notes.append(f"the configuration of {plain.folder} is not that of the base which the adapter was exported with")
    if isinstance(plain, PlainFolder) and base is None and (kept := _few_bits(run)):
        notes.append(f"the adapter was trained on weights in {kept}; it is merged into what those were made from")
    return Opened(merged, plain, base_source.name, base_revision, place, run, list(dict.fromkeys(notes)))


def config_hash(folder: Path) -> str:
    """The SHA-256 of a model folder's configuration."""
    return hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()


def _weights(place: Path, options: LoadOptions, *, explicit: bool = False) -> tuple[Weights, list[str]]:
    quantization: Any = read_json(place / "config.json").get("quantization_config")
    if not quantization:
        return PlainFolder(place), []
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    note = f"the weights of {place} are kept by {method}: they are exported as the values that they stand for"
    named = None if explicit else _named_original(place)
    if named is None:
        return DequantizedFolder(place), [note]
    original = _original(named, options)
    if original is not None:
        return original, [f"merged into {original.folder}, the 16-bit weights that {place} was made from"]
    return DequantizedFolder(place), [f"{note}; what it was made from, '{named}', is not at hand"]


def _named_original(place: Path) -> str | None:
    """What a folder of ours was quantized from, as it is found from every folder.

    Older files have a local name as it was typed: it is looked for in the folder and beside it. What the current folder
    holds is no matter, since another model may be called the same there.
    """
    if not (place / _FIGURES).is_file():
        return None
    named = read_json(place / _FIGURES).get("model")
    if not isinstance(named, str) or not named:
        return None
    try:
        if named == DEMO or named.startswith(PREFIX) or Path(named).expanduser().is_absolute():
            return named
        near = next((folder / named for folder in (place.parent, place) if (folder / named).exists()), None)
    except (OSError, RuntimeError):  # no name of a file: too long, or of nobody's home
        return None
    return named if near is None else str(near)


def _original(named: str, options: LoadOptions) -> PlainFolder | None:
    """A model that is here, with its 16-bit weights."""
    if named != DEMO and not named.startswith(PREFIX) and not Path(named).expanduser().is_absolute():
        return None  # of the hub, or typed in a folder that is not known
    try:
        found = PlainFolder(_folder(find(named, options), options)[0])
        return found if found.files else None
    except HastenError:  # moved, deleted, or an adapter; its quantized form is at hand
        return None


def _find_base(name: str, adapter: Path, options: LoadOptions) -> tuple[Source, Path, str | None]:
    beside = adapter / name
    if name.startswith(".") and beside.exists():
        name = str(beside)
    try:
        source = find(name, options)
        place, revision = _folder(source, options)
    except ModelError as cause:
        raise ModelError(
            str(adapter),
            f"its base model '{name}' is not there ({cause.value})",
            "An adapter is merged into the model it was trained on.",
            f"Put the base there, name it (--base or base=), or correct base_model_name_or_path in {CONFIG}.",
        ) from cause
    if (place / CONFIG).is_file():
        rule = "A base is a whole model."
        raise ModelError(str(adapter), f"its base '{name}' is an adapter too", rule, "Merge that adapter first.")
    return source, place, revision


def _base_name(adapter: Path) -> str:
    name = read_json(adapter / CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ModelError(
            str(adapter),
            f"{CONFIG} names no base model",
            "PEFT records it there.",
            "Name it (--base or base=).",
        )
    return name


def _folder(source: Source, options: LoadOptions) -> tuple[Path, str | None]:
    """The files of a source, in a folder; of a repository, also which commit that is."""
    if source.kind != "hub":
        return Path(local_folder(source, options)), None
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    for name in ("config.json", CONFIG):
        cached = try_to_load_from_cache(source.name, name, revision=options.revision)
        if isinstance(cached, str) and _complete(Path(cached).parent):
            return Path(cached).parent, Path(cached).parent.name
    try:
        place = snapshot_download(
            source.name, revision=options.revision, token=options.token, ignore_patterns=list(_PICKLES)
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as cause:
        raise ModelError(
            source.name,
            f"it is not in the hub's cache, and was not downloaded ({str(cause).strip().splitlines()[0][:200]})",
            "A model is 'demo', a folder, a .gguf file or a hub id.",
            "Check the spelling and the connection; of a gated model, pass token=.",
        ) from cause
    if not _complete(Path(place)):
        rule = "A model's weights are in safetensors files."
        raise ModelError(source.name, "some of its files are missing", rule, "Download it again.")
    return Path(place), Path(place).name


def _complete(place: Path) -> bool:
    if (place / CONFIG).is_file():
        return (place / WEIGHTS).is_file()
    try:
        return bool(PlainFolder.of_any(place, {}).files)
    except ModelError:
        return False


def _few_bits(run: RunFolder | None) -> str | None:
    """How a run kept its frozen weights, where that was not in 16 bits or more."""
    header = run.record().get("header", []) if run is not None else []
    return next((line.get("choice") for line in header if line.get("part") == "frozen weights"), None)
