"""One export: everything that is asked for, written, read back, compared, and only then given its name.

Each target is written into a folder whose name says that it is not verified. What passes is renamed; what does not gets
a name that says it was refused, and the export ends in an error.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from hasten.data.templates import ChatEncoder
from hasten.errors import CapabilityError, ConfigError, MissingPackageError
from hasten.export import vllm
from hasten.export.dressed import Dressed, dressed
from hasten.export.gguf import dynamic
from hasten.export.gguf.encoders import has_ggml
from hasten.export.gguf.importance import Importance, measure, read_importance
from hasten.export.gguf.lora import write_adapter as write_gguf_adapter
from hasten.export.gguf.mixes import Chosen, choose
from hasten.export.gguf.source import Source
from hasten.export.gguf.write import Planned, plan_gguf, write_gguf
from hasten.export.hf.adapter import write_adapter
from hasten.export.hf.base import Opened
from hasten.export.hf.fp8 import write_fp8
from hasten.export.hf.write import write_model
from hasten.export.ollama.create import create
from hasten.export.ollama.write import FILE as MODELFILE
from hasten.export.ollama.write import write_modelfile
from hasten.export.prove import Proof, adds_bos
from hasten.export.targets import Wanted
from hasten.export.verify import logits
from hasten.export.verify.checks import Check, require_right
from hasten.files import make_folder, require_writable, storing, write_json
from hasten.loading.source import read_json

RECORD = "export.json"
TOKENS = 16384
"""That an importance matrix is measured on, or types are chosen by."""
Tell = Callable[[str], None]
Progress = Callable[[str, int, int], None]
_DRAFT, _REFUSED = ".unverified-", "refused-"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is exported, and how."""

    wanted: Wanted
    output: Path
    """The folder of all targets."""
    verify: bool = True
    sources: tuple[str, ...] = ("python-docs",)
    """Text that an importance matrix is measured on."""
    tokens: int = TOKENS
    importance: Path | bool = False
    """A file of llama-imatrix's, or whether to measure one; `dynamic` always does."""
    size: str | float = "q4_k_m"
    """The bytes that `dynamic` spends: a type's, or bits per weight."""
    max_shard_size: str | int = "5GB"
    name: str | None = None
    """What files are called; None: after the run, adapter or model."""


@dataclass
class Exported:
    """What was written."""

    output: Path
    targets: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By target: path, bytes and what belongs to its kind."""
    checks: list[Check] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    """What to type next."""
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        own = {"output": str(self.output), "targets": self.targets, "commands": self.commands, "notes": self.notes}
        return {**own, "checks": [check.as_dict() for check in self.checks]}


def export(
    opened: Opened,
    request: Request,
    *,
    tell: Tell = lambda text: None,
    progress: Progress = lambda what, done, of: None,
) -> Exported:
    """Export a model.

    Args:
        opened: from `hasten.export.hf.base.open_model`.
        request: what is wanted.
        tell: told what is being done, a line each.
        progress: told bytes done and in all of what is being written.

    Raises:
        CapabilityError: a family, tokenizer or adapter that a target does not take; other targets work.
        ConfigError: an output folder that holds something else.
        MissingPackageError: a type whose encoder is not installed.
        ModelError: the model is damaged, or what was read back is not what was meant.
        StorageError: the disk is full or not writable; nothing is left half-written.
    """
    job = _Job(opened, request, tell, progress)
    return job.run()


class _Job:
    def __init__(self, opened: Opened, request: Request, tell: Tell, progress: Progress) -> None:
        self.opened, self.request, self.wanted = opened, request, request.wanted
        self.tell, self.progress = tell, progress
        self.output = request.output.expanduser()
        self.done = Exported(self.output, notes=list(opened.notes))
        self.name = request.name or _name_of(opened)

    def run(self) -> Exported:
        require_writable(self.output)
        self._require_own()
        self._require_possible()
        made_here = not self.output.exists()
        make_folder(self.output)
        try:
            with ExitStack() as stack:
                beside = Path(stack.enter_context(TemporaryDirectory(dir=self.output, prefix=".")))
                model = dressed(self.opened, beside)
                self.done.notes += model.notes
                self.proof = Proof(self.opened, model, self.output)
                if self.request.verify:
                    self._check(self.proof.adapter(), None)
                self._folders()
                self._adapters()
                if self.wanted.gguf:
                    self._gguf(model)
        finally:
            if made_here and not any(self.output.iterdir()):
                self.output.rmdir()
        self.done.notes = list(dict.fromkeys(self.done.notes))
        write_json(self.output / RECORD, {**_record(self.output), **self.done.as_dict(), "targets": self._all()})
        return self.done

    def _folders(self) -> None:
        wanted = self.wanted
        if wanted.hf is not None:
            folder = self._draft("hf")
            written = write_model(
                self.opened, folder, dtype=wanted.hf or None, max_shard_size=self.request.max_shard_size,
                progress=self._progress("hf"),
            )  # fmt: skip
            self.done.notes += written.notes
            checks = self.proof.folder(folder, written.dtype) if self.request.verify else []
            if wanted.vllm:
                vllm.require_servable(vllm.model_problems(folder))
                self.done.commands.append(vllm.serve_model(self.output / "hf"))
            self._finish("hf", checks, bytes=written.nbytes, dtype=written.dtype)
        if wanted.fp8:
            folder = self._draft("fp8")
            written = write_fp8(
                self.opened, folder, max_shard_size=self.request.max_shard_size, progress=self._progress("fp8")
            )
            self.done.notes += written.notes
            self.done.commands.append(vllm.serve_model(self.output / "fp8"))
            self._finish(
                "fp8", self.proof.fp8(folder) if self.request.verify else [], bytes=written.nbytes, dtype=written.dtype
            )

    def _adapters(self) -> None:
        if self.wanted.lora:
            folder = self._draft("lora")
            written = write_adapter(self.opened, folder)
            self.done.notes += written.notes
            if self.wanted.vllm_lora:
                vllm.require_servable(vllm.adapter_problems(folder, self.opened.base))
                self.done.commands.append(vllm.serve_adapter(folder, self.opened.base_name, "lora"))
                self.done.commands[-1] = self.done.commands[-1].replace(str(folder), str(self.output / "lora"))
            self._finish("lora", self.proof.lora(folder) if self.request.verify else [], bytes=written.nbytes)
        if self.wanted.gguf_lora:
            assert self.opened.adapter is not None, "was required"
            folder = make_folder(self._draft("gguf-lora"))
            file = folder / f"{self.name}-lora-f32.gguf"
            write_gguf_adapter(self.opened.adapter, self.opened.base, file)
            self.done.commands.append(f"llama-cli -m BASE.gguf --lora {self.output / 'gguf-lora' / file.name}")
            self._finish("gguf-lora", [], bytes=file.stat().st_size)

    def _gguf(self, model: Dressed) -> None:
        source = Source(model)
        importance, choices = self._chosen(model, source)
        folder = make_folder(self._draft("gguf"))
        outputs = {kind: folder / f"{self.name}-{kind.upper()}.gguf" for kind in self.wanted.gguf}
        weights = None if importance is None else _by_name(importance, source)
        for kind, planned in plan_gguf(model, outputs, choices=choices, importance=weights).items():
            self._say_fallbacks(kind, planned)
        written = write_gguf(
            model,
            outputs,
            choices=choices,
            importance=weights,
            facts={"general.name": self.name},
            progress=self._progress("gguf"),
        )
        checks: list[Check] = []
        for kind, file in outputs.items():
            if self.request.verify:
                chosen = choices.get(kind) or choose(
                    source.by_layers(), kind, source.model, importance=importance is not None
                )
                self.tell(f"reading back {file.name}")
                checks += self.proof.gguf(file, kind, chosen)
        if self.wanted.ollama is not None:
            checks += self._modelfile(model, folder, next(iter(outputs.values())).name)
        files = {
            kind: {"path": str(self.output / "gguf" / each.path.name), "bytes": each.bytes,
                   "bits_per_weight": each.bits_per_weight,
                   "types": {one.name: count for one, count in each.tensors.items()}}
            for kind, each in written.items()
        }  # fmt: skip
        self._finish("gguf", checks, files=files, bytes=sum(each.bytes for each in written.values()))
        self.done.commands += [f"llama-cli -m {file['path']}" for file in files.values()][:1]
        if self.wanted.ollama is not None:
            self._create()

    def _modelfile(self, model: Dressed, folder: Path, gguf: str) -> list[Check]:
        if model.tokenizer is None:
            rule = "A Modelfile says where answers end."
            raise CapabilityError("ollama", "the model has no tokenizer", rule, "Export it to gguf alone.")
        written = write_modelfile(
            folder, gguf, ChatEncoder(model.tokenizer), generation_config=dict(model.generation),
            adds_bos=adds_bos(folder / gguf),
        )  # fmt: skip
        self.done.notes += written.notes
        if written.refused:
            self.done.notes.append(f"the Modelfile has no TEMPLATE: {written.refused}")
        return self.proof.modelfile(folder / MODELFILE, gguf) if self.request.verify else []

    def _create(self) -> None:
        folder = self.output / "gguf"
        if not self.wanted.ollama:
            self.done.commands.append(f"ollama create {self.name.lower()} -f {folder / MODELFILE}")
            return
        created = create(self.wanted.ollama, folder, progress=self.progress)
        if created.command:
            self.done.notes.append("no Ollama runs here: the command creates the model where one does")
            self.done.commands.append(created.command)
        else:
            self.done.notes.append(f"'{created.name}' was created in Ollama {created.version}")
            self.done.commands.append(f"ollama run {created.name}")

    def _chosen(self, model: Dressed, source: Source) -> tuple[Importance | None, dict[str, Mapping[str, Chosen]]]:
        """The importance matrix, and the types of a file whose name does not say them."""
        asked = self.request.importance
        importance = read_importance(asked) if isinstance(asked, Path) else None
        is_dynamic = dynamic.NAME in self.wanted.gguf
        if not is_dynamic and asked is not True:
            return importance, {}
        live, windows = self._calibration(model)
        if not is_dynamic:
            self.tell("measuring what each weight reads (importance matrix)")
            return measure(live, windows), {}
        made = dynamic.survey(live, windows, source.by_layers(), source.model, tell=self.tell).choose(self.request.size)
        self.tell(f"dynamic: {made.bytes / 2**20:,.0f} of {made.budget / 2**20:,.0f} MiB")
        return importance or made.importance, {dynamic.NAME: made.choices}

    def _calibration(self, model: Dressed) -> tuple[Any, Any]:
        from hasten.quant.calibration import read_windows

        why = logits.room(model)
        if why is not None:
            raise CapabilityError("an importance matrix", why, "It is measured on the whole model.", "Use q4_k_m.")
        most = int(model.config.get("max_position_embeddings") or 512)
        windows = read_windows(list(self.request.sources), model.tokenizer, self.request.tokens, most)
        return logits.model_of(model), windows.calibration

    def _say_fallbacks(self, kind: str, planned: Planned) -> None:
        if not planned.fallbacks:
            return
        first, count = planned.fallbacks[0], len(planned.fallbacks)
        said = (
            f"{kind}: {count} tensors have rows that do not fit their type's blocks; '{first.tensor}' is "
            f"{first.got.name} instead of {first.wanted.name}: {planned.bits_per_weight:.2f} bits per weight in all"
        )
        self.done.notes.append(said)
        self.tell(said)

    def _progress(self, what: str) -> Callable[[int, int], None]:
        return lambda done, of: self.progress(what, done, of)

    def _draft(self, target: str) -> Path:
        draft = self.output / f"{_DRAFT}{target}"
        with storing(draft):
            if draft.exists():
                shutil.rmtree(draft)
        return draft

    def _finish(self, target: str, checks: list[Check], **facts: Any) -> None:
        draft, final = self.output / f"{_DRAFT}{target}", self.output / target
        self._check(checks, draft)
        with storing(final):
            if final.exists():
                shutil.rmtree(final)
            draft.replace(final)
        self.done.targets[target] = {"path": str(final), **facts}

    def _check(self, checks: list[Check], draft: Path | None) -> None:
        self.done.checks += checks
        if draft is None:
            require_right(checks, "no file: nothing was written")
        elif any(check.state == "wrong" for check in checks):
            refused = draft.with_name(draft.name.replace(_DRAFT, _REFUSED))
            with storing(refused):
                if refused.exists():
                    shutil.rmtree(refused)
                draft.replace(refused)
            require_right(checks, str(refused))

    def _require_own(self) -> None:
        """Folders of targets are replaced only where an export has made them."""
        known = _record(self.output).get("targets", {})
        for target in self._names():
            folder = self.output / target
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and target not in known:
                raise ConfigError(
                    "--output",
                    f"'{folder}' is there, and no export made it",
                    f"An export replaces only what {RECORD} beside it names.",
                    "Choose another folder.",
                )

    def _require_possible(self) -> None:
        """What cannot work is found before hours of work, not after."""
        if self.opened.adapter is None and (self.wanted.lora or self.wanted.gguf_lora):
            rule = "An adapter is what a run trained on a base."
            raise ConfigError("--to", "'lora' of a whole model", rule, "Use hf or gguf.")
        if self.wanted.gguf:
            Source(self.opened.weights)
            if dynamic.NAME in self.wanted.gguf and not has_ggml():
                raise MissingPackageError(
                    dynamic.NAME, "libggml-python is not installed", "Its types are ggml's.",
                    'Run `pip install "hasten[gguf]"`.',
                )  # fmt: skip

    def _names(self) -> list[str]:
        wanted = self.wanted
        given = {"hf": wanted.hf is not None, "fp8": wanted.fp8, "lora": wanted.lora, "gguf-lora": wanted.gguf_lora}
        return [name for name, asked in {**given, "gguf": bool(wanted.gguf)}.items() if asked]

    def _all(self) -> dict[str, Any]:
        before = _record(self.output).get("targets", {})
        return {**{name: each for name, each in before.items() if (self.output / name).is_dir()}, **self.done.targets}


def _record(output: Path) -> dict[str, Any]:
    return dict(read_json(output / RECORD)) if (output / RECORD).is_file() else {}


def _by_name(importance: Importance, source: Source) -> dict[str, np.ndarray]:
    found = {entry.tensor.name: importance.of(entry.tensor) for entry in source.entries}
    return {name: values for name, values in found.items() if values is not None}


def _name_of(opened: Opened) -> str:
    """What files are called: the run's name, the adapter's folder or the model's."""
    if opened.run is not None:
        return opened.run.name
    if opened.adapter is not None and opened.adapter.name != "adapter":
        return opened.adapter.name
    if opened.adapter is not None:
        return opened.adapter.parent.name
    return Path(opened.base_name).stem if Path(opened.base_name).is_file() else Path(opened.base_name).name or "model"
