"""One export: everything that is asked for, written, read back, compared, and only then given its name.

Each target is written into a folder whose name says that it is not verified. What passes is renamed; what does not gets
a name that says it was refused, and the export ends in an error.
"""

from __future__ import annotations

import re
import secrets
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hasten.data.templates import ChatEncoder
from hasten.errors import CapabilityError, ConfigError, MissingPackageError, StorageError
from hasten.export import vllm
from hasten.export.dressed import Dressed, dressed
from hasten.export.gguf import dynamic
from hasten.export.gguf.encoders import has_ggml
from hasten.export.gguf.importance import Importance, measure, read_importance
from hasten.export.gguf.lora import write_adapter as write_gguf_adapter
from hasten.export.gguf.mixes import Chosen, choose, named
from hasten.export.gguf.source import Source
from hasten.export.gguf.write import Planned, Written, plan_gguf, write_gguf
from hasten.export.hf.adapter import write_adapter
from hasten.export.hf.base import Opened
from hasten.export.hf.fp8 import write_fp8
from hasten.export.hf.write import write_model
from hasten.export.leftovers import DRAFT, draft, owned, remove, remove_left
from hasten.export.ollama.create import create
from hasten.export.ollama.write import FILE as MODELFILE
from hasten.export.ollama.write import write_modelfile
from hasten.export.prove import Proof, adds_bos
from hasten.export.record import RECORD, read_record
from hasten.export.targets import Wanted
from hasten.export.verify import logits
from hasten.export.verify.checks import Check, require_right
from hasten.files import make_folder, put, require_writable, storing, write_json

TOKENS = 16384
"""That an importance matrix is measured on, or types are chosen by."""
Tell = Callable[[str], None]
Progress = Callable[[str, int, int], None]
_REFUSED = "refused-"
_NAME = re.compile(r"\w[\w.+ -]{0,149}")


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
    return _Job(opened, request, tell, progress).run()


class _Job:
    def __init__(self, opened: Opened, request: Request, tell: Tell, progress: Progress) -> None:
        self.opened, self.request, self.wanted = opened, request, request.wanted
        self.tell, self.progress = tell, progress
        self.output = request.output.expanduser()
        self.done = Exported(self.output, notes=list(opened.notes))
        self.name = plain_name(request.name) if request.name is not None else _name_of(opened)
        self.source = str(opened.adapter or opened.base.folder)
        self.drafts: dict[str, Path] = {}
        self.importance: Importance | None = None
        self.token = secrets.token_hex(4)

    def run(self) -> Exported:
        try:
            return self._run()
        except StorageError as error:
            if DRAFT not in error.subject:
                raise
            # Drafts are gone by now, and their names say nothing to whoever asked for a folder.
            raise StorageError(str(self.output), error.value, error.rule, error.remedy) from error

    def _run(self) -> Exported:
        require_writable(self.output)
        self._require_own()
        self._require_possible()
        made_here = not self.output.exists()
        make_folder(self.output)
        self.done.notes += remove_left(self.output)
        try:
            with ExitStack() as stack:
                scratch = stack.enter_context(owned(self.output, self.token))
                stack.callback(self._remove_drafts)  # before the job's own folder, by which they are found again
                with storing(self.output):
                    (scratch / self.name).mkdir()
                    model = dressed(self.opened, scratch / self.name)
                self.done.notes += model.notes
                self.proof = Proof(self.opened, model, scratch)
                if self.request.verify:
                    self._check(self.proof.adapter(), None)
                self._folders()
                self._adapters()
                if self.wanted.gguf:
                    self._gguf(model)
        finally:
            if made_here:
                with suppress(OSError):  # it has something in it, or is gone
                    self.output.rmdir()
        if self.wanted.ollama is not None:
            self._create()
        self._record()
        return self.done

    def _remove_drafts(self) -> None:
        for folder in self.drafts.values():
            remove(folder)

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
                command = vllm.serve_adapter(folder, self.opened.base_name, "lora", place=self.output / "lora")
                self.done.commands.append(command)
            self._finish("lora", self.proof.lora(folder) if self.request.verify else [], bytes=written.nbytes)
        if self.wanted.gguf_lora:
            assert self.opened.adapter is not None, "was required"
            folder = make_folder(self._draft("gguf-lora"))
            file = folder / f"{self.name}-lora-f32.gguf"
            write_gguf_adapter(self.opened.adapter, self.opened.base, file)
            place = self.output / "gguf-lora" / file.name
            self.done.commands.append(shlex.join(["llama-cli", "-m", "BASE.gguf", "--lora", str(place)]))
            checks = self.proof.gguf_lora(file) if self.request.verify else []
            self._finish("gguf-lora", checks, bytes=file.stat().st_size)

    def _gguf(self, model: Dressed) -> None:
        source = Source(model)
        folder = make_folder(self._draft("gguf"))
        outputs = {kind: folder / f"{self.name}-{kind.upper()}.gguf" for kind in self.wanted.gguf}
        checks: list[Check] = []
        written: dict[str, Written] = {}
        for kinds, importance, choices in self._groups(model, source):
            own = {kind: outputs[kind] for kind in kinds}
            weights = None if importance is None else _by_name(importance, source)
            for kind, planned in plan_gguf(model, own, choices=choices, importance=weights).items():
                self._say_fallbacks(kind, planned)
            written |= write_gguf(
                model,
                own,
                choices=choices,
                importance=weights,
                facts={"general.name": self.name},
                progress=self._progress("gguf"),
            )
            for kind, file in own.items() if self.request.verify else ():
                chosen = choices.get(kind) or choose(
                    source.by_layers(), kind, source.model, importance=importance is not None
                )
                self.tell(f"reading back {file.name}")
                checks += self.proof.gguf(file, kind, chosen)
        if self.wanted.ollama is not None:
            checks += self._modelfile(model, folder, outputs[self.wanted.gguf[0]].name)
        place = self.output / "gguf"
        files = {
            kind: {"path": str(place / each.path.name), "bytes": each.bytes, "bits_per_weight": each.bits_per_weight,
                   "types": {one.name: count for one, count in each.tensors.items()}}
            for kind, each in written.items()
        }  # fmt: skip
        files = {**self._kept_files(folder), **{kind: files[kind] for kind in self.wanted.gguf}}
        self._finish("gguf", checks, files=files, bytes=sum(each["bytes"] for each in files.values()))
        self.done.commands.append(shlex.join(["llama-cli", "-m", files[self.wanted.gguf[0]]["path"]]))

    def _kept_files(self, folder: Path) -> dict[str, Any]:
        """Files of other types that earlier exports of this model wrote, linked or copied into the new folder."""
        before = read_record(self.output)["targets"].get("gguf", {}).get("files", {})
        kept = {kind: each for kind, each in before.items() if kind not in self.wanted.gguf}
        found = {}
        for kind, each in kept.items():
            old = self.output / "gguf" / Path(each["path"]).name
            if old.is_file() and not (folder / old.name).exists():
                with storing(folder):
                    try:
                        (folder / old.name).hardlink_to(old)
                    except OSError:  # a file system without links
                        shutil.copyfile(old, folder / old.name)
                found[kind] = each
        modelfile = self.output / "gguf" / MODELFILE
        if found and modelfile.is_file() and not (folder / MODELFILE).exists():
            with storing(folder):
                shutil.copyfile(modelfile, folder / MODELFILE)
        return found

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
            words = ["ollama", "create", _ollama_name(self.name), "-f", str(folder / MODELFILE)]
            self.done.commands.append(shlex.join(words))
            return
        created = create(self.wanted.ollama, folder, progress=self.progress)
        if created.command:
            self.done.notes.append(created.why)
            self.done.commands.append(created.command)
        else:
            self.done.notes.append(f"'{created.name}' was created in Ollama {created.version}")
            self.done.commands.append(shlex.join(["ollama", "run", created.name]))

    def _groups(
        self, model: Dressed, source: Source
    ) -> Iterator[tuple[tuple[str, ...], Importance | None, dict[str, Mapping[str, Chosen]]]]:
        """Types that are encoded with one importance matrix: `dynamic` has its own, whatever the others use."""
        asked = self.request.importance
        plain = tuple(kind for kind in self.wanted.gguf if kind != dynamic.NAME)
        is_dynamic = dynamic.NAME in self.wanted.gguf
        live: Any = None
        windows: Any = None
        if is_dynamic or asked is True:
            live, windows = self._calibration(model)
        if plain:
            importance = self.importance
            if asked is True:
                self.tell("measuring what each weight reads (importance matrix)")
                importance = measure(live, windows)
            yield plain, importance, {}
        if is_dynamic:
            found = dynamic.survey(live, windows, source.by_layers(), source.model, tell=self.tell)
            made = found.choose(self.request.size)
            self.tell(f"dynamic: {made.bytes / 2**20:,.1f} of {made.budget / 2**20:,.1f} MiB")
            yield (dynamic.NAME,), made.importance, {dynamic.NAME: made.choices}

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
        self.drafts[target] = draft(self.output, target, self.token)
        return self.drafts[target]

    def _finish(self, target: str, checks: list[Check], **facts: Any) -> None:
        draft, final = self.drafts[target], self.output / target
        self._check(checks, target)
        facts["contents"] = sorted(path.name for path in draft.iterdir())
        with storing(final):
            put(draft, final)
        self.done.targets[target] = {"path": str(final), **facts}
        self._record()

    def _record(self) -> None:
        """What stands under its name is in the record, whatever comes after it."""
        self.done.notes = list(dict.fromkeys(self.done.notes))
        known = read_record(self.output)["targets"]
        targets = {name: each for name, each in known.items() if (self.output / name).is_dir()} | self.done.targets
        write_json(self.output / RECORD, {**self.done.as_dict(), "source": self.source, "targets": targets})

    def _check(self, checks: list[Check], target: str | None) -> None:
        self.done.checks += checks
        if target is None:
            require_right(checks, "no file: nothing was written")
        elif any(check.state == "wrong" for check in checks):
            refused = self.output / f"{_REFUSED}{target}"
            with storing(refused):
                put(self.drafts[target], refused)
            require_right(checks, str(refused))

    def _require_own(self) -> None:
        """A folder is replaced only where an export of the same model made all that is in it."""
        record = read_record(self.output)
        for target in self._names():
            self._require_apart(self.output / target)
            folder, known = self.output / target, record["targets"].get(target)
            if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
                continue
            foreign = [] if known is None or not folder.is_dir() else _others(folder, known.get("contents", []))
            if known is not None and not foreign and record.get("source") == self.source:
                continue
            what = (
                f"'{folder}' is there, and no export made it" if known is None
                else f"'{folder}' holds '{foreign[0]}'" if foreign
                else f"'{folder}' is an export of {record.get('source')}"
            )  # fmt: skip
            rule = f"An export replaces only what {RECORD} beside it names, of the same model."
            raise ConfigError("--output", what, rule, "Choose another folder.")

    def _require_apart(self, folder: Path) -> None:
        """What is exported is read until the end: it must not be what is replaced."""
        read = {self.opened.base.folder, self.opened.weights.folder, self.opened.adapter} - {None}
        for one in (place.resolve() for place in read if place is not None):
            if folder.resolve() == one or folder.resolve() in one.parents or one in folder.resolve().parents:
                raise ConfigError(
                    "--output", f"'{folder}' and '{one}' are one place", "What is exported is read from there.",
                    "Choose another folder.",
                )  # fmt: skip

    def _require_possible(self) -> None:
        """What cannot work is found before hours of work, not after."""
        size, tokens = self.request.size, self.request.tokens
        if isinstance(size, float) and not 1.0 <= size <= 16.0:
            raise ConfigError("--size", str(size), "A weight of a GGUF file has 1 to 16 bits.", "Use 4.5, or q4_k_m.")
        if isinstance(size, str) and dynamic.NAME in self.wanted.gguf:
            named(size)
        if tokens < 1:
            raise ConfigError("--tokens", str(tokens), "Something is measured on them.", "Use 16384.")
        if self.opened.adapter is None and (self.wanted.lora or self.wanted.gguf_lora):
            rule = "An adapter is what a run trained on a base."
            raise ConfigError("--to", "'lora' of a whole model", rule, "Use hf or gguf.")
        if self.wanted.vllm_lora:
            vllm.require_servable(vllm.base_problems(self.opened.base_name))
        plain = [kind for kind in self.wanted.gguf if kind != dynamic.NAME]
        if self.request.importance and not plain:
            value = "with gguf:dynamic alone" if self.wanted.gguf else "without a GGUF type"
            rule = "An importance matrix is for the types of GGUF files; 'dynamic' measures its own."
            raise ConfigError("--importance or --imatrix", value, rule, "Leave it out, or add a type: gguf:q4_k_m.")
        if isinstance(self.request.importance, Path):
            self.importance = read_importance(self.request.importance)
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


def _by_name(importance: Importance, source: Source) -> dict[str, np.ndarray]:
    found = {entry.tensor.name: importance.of(entry.tensor) for entry in source.entries}
    return {name: values for name, values in found.items() if values is not None}


def plain_name(name: str) -> str:
    """Refuse what files cannot be called.

    Raises:
        ConfigError: it is none, or leads into another folder.
    """
    if not _NAME.fullmatch(name):
        rule = "Files are called so: letters, digits, blanks and . _ - +, with a letter or digit first."
        raise ConfigError("--name", repr(name), rule, "For example: my-model.")
    return name


def _name_of(opened: Opened) -> str:
    """What files are called: the run's name, the adapter's folder or the model's."""
    adapter, base = opened.adapter, opened.base_name
    if opened.run is not None:
        own = opened.run.name
    elif adapter is not None:
        own = adapter.name if adapter.name != "adapter" else adapter.parent.name
    else:
        own = (
            opened.base.folder.name.rpartition("-v")[0].rpartition("-")[0] if Path(base).is_file() else Path(base).name
        )
    own = re.sub(r"[^\w.+ -]", "-", own).lstrip("._-+ ")
    return own[:150] or "model"


def _ollama_name(name: str) -> str:
    return re.sub(r"[^a-z0-9_.-]", "-", name.lower()).replace("..", ".").strip("-.")[:80] or "model"


def _others(folder: Path, contents: Sequence[str]) -> list[str]:
    return sorted({path.name for path in folder.iterdir()} - set(contents))
