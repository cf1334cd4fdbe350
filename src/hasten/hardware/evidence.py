"""What was read of a machine: one frozen record of plain text and numbers, which JSON holds.

Nothing here looks at the machine (`reading.py` does) and nothing judges (`doctor.py` does): so a record that somebody
sends is judged here exactly as it would be there. A reading that failed is kept as its failure.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hasten.errors import ConfigError, did_you_mean

FORMAT = 1
"""Of the file; a later one may have fields that this version does not know."""


@dataclass(frozen=True)
class Reading:
    """One text that was read."""

    text: str = ""
    """What came: a file's content, or a program's output and errors."""
    failure: str = ""
    """Why it did not come, or why the program ended badly; empty where it went well."""

    @property
    def came(self) -> bool:
        """Whether the reading went well."""
        return not self.failure


@dataclass(frozen=True, kw_only=True)
class PythonFacts:
    """The interpreter."""

    version: str = ""
    virtual: bool = False
    """Whether it is a virtual environment's, or conda's."""
    managed: bool = False
    """Whether the system keeps its packages to itself (PEP 668)."""
    header: bool = True
    """Whether `Python.h` is there, which Triton compiles against."""


@dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """A CUDA device, as torch sees it."""

    name: str
    major: int
    minor: int
    total_bytes: int
    free_bytes: int | None = None
    """As CUDA says; None where it was not asked."""
    integrated: bool = False
    """Whether its memory is the machine's."""


@dataclass(frozen=True, kw_only=True)
class TorchFacts:
    """torch, in a process of its own."""

    version: str = ""
    """Empty where it is not installed or does not load."""
    cuda: str = ""
    """The CUDA version that it was built with; empty for a CPU build."""
    hip: str = ""
    archs: tuple[str, ...] = ()
    """What its kernels were compiled for: `sm_90`, `compute_120`; torch only tells where a device is."""
    available: bool = False
    devices: tuple[DeviceFacts, ...] = ()
    said: str = ""
    """Its warnings while it looked for devices."""
    failure: str = ""


@dataclass(frozen=True, kw_only=True)
class TritonFacts:
    """Triton, and its first kernel."""

    version: str = ""
    """Empty where it is not installed."""
    bundled: Mapping[str, Reading] = field(default_factory=dict)
    """``--version`` of each assembler that it brings: `ptxas`, and in newer releases `ptxas-blackwell`."""
    kernel: Reading | None = None
    """What came of the kernel: ``equal``, or what failed; None where no device was there to run it."""


@dataclass(frozen=True, kw_only=True)
class BitsandbytesFacts:
    """bitsandbytes, in a process of its own."""

    version: str = ""
    """Empty where it is not installed."""
    libraries: tuple[str, ...] = ()
    """Names of its native libraries: `cpu`, `cuda130`."""
    works: Reading | None = None
    """What came of 64 values in 4 bits on the device, or of loading the CPU library where there is none."""


@dataclass(frozen=True, kw_only=True)
class DiskFacts:
    """The file system that holds a folder."""

    free_bytes: int | None = None
    total_bytes: int | None = None
    failure: str = ""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything that was read of one machine."""

    format: int = FORMAT
    source: str = ""
    """Where the record comes from, in words."""
    system: str = ""
    """`Linux`, `Darwin`, `Windows`."""
    machine: str = ""
    """`x86_64`, `aarch64`."""
    python: PythonFacts = field(default_factory=PythonFacts)
    commands: Mapping[str, Reading] = field(default_factory=dict)
    """By name: `nvidia-smi`, `gpus` (its table), `nvcc`, `cc`."""
    files: Mapping[str, Reading] = field(default_factory=dict)
    """By path; a file that is not there is not in it."""
    present: tuple[str, ...] = ()
    """Paths that exist and say something by that."""
    ptxas: Mapping[str, Reading] = field(default_factory=dict)
    """``--version`` of the assemblers of CUDA toolkits, by path."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Of the variables, those that decide something."""
    torch: TorchFacts = field(default_factory=TorchFacts)
    triton: TritonFacts = field(default_factory=TritonFacts)
    bitsandbytes: BitsandbytesFacts = field(default_factory=BitsandbytesFacts)
    packages: Mapping[str, str] = field(default_factory=dict)
    """Versions of installed packages; empty text for one that is not installed."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """Bytes: `memlock`, `stack`; -1 for no limit."""
    disks: Mapping[str, DiskFacts] = field(default_factory=dict)
    """By use: `cache`, `working folder`, `/dev/shm`."""
    hub: Reading | None = None
    """What the hub answered; None where it was not asked."""

    def text(self, path: str) -> str:
        """A file's text, or nothing."""
        return self.files.get(path, Reading()).text

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)


def load_evidence(path: Path) -> Evidence:
    """Read a record that `hasten doctor --record` wrote.

    Raises:
        ConfigError: the file cannot be read, is no JSON, or is no such record.
    """
    remedy = "Make one with `hasten doctor --record FILE`."
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        value = (cause.strerror or "cannot be read") if isinstance(cause, OSError) else "is not UTF-8 text"
        raise ConfigError(str(path), value, "A recorded machine is a JSON file.", remedy) from cause
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as cause:
        raise ConfigError(str(path), f"no JSON ({cause})", "A recorded machine is a JSON file.", remedy) from cause
    return evidence_of(values, str(path))


def evidence_of(values: object, where: str) -> Evidence:
    """A record from plain values; fields that are left out have nothing in them.

    Args:
        values: as `Evidence.as_dict` gives them.
        where: the file's name, for messages.

    Raises:
        ConfigError: a field is unknown or holds something else than it should, or the format is a later one.
    """
    if isinstance(values, dict) and isinstance(values.get("format"), int) and values["format"] > FORMAT:
        value = f"format {values['format']}"
        raise ConfigError(where, value, f"This version of hasten reads formats up to {FORMAT}.", "Update hasten.")
    return _build(Evidence, values, where)


def _build(kind: type, values: object, where: str) -> Any:
    if not isinstance(values, dict):
        raise _wrong(where, values, "an object")
    hints = typing.get_type_hints(kind)
    for name in values:
        if name not in hints:
            remedy = did_you_mean(str(name), hints, "Record the machine again with `hasten doctor --record FILE`.")
            raise ConfigError(_inside(where, name), "unknown field", f"Known: {', '.join(hints)}.", remedy)
    needed = [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
    for name in needed:
        if name not in values:
            raise ConfigError(where, f"'{name}' is missing", "A device has it.", "Record the machine again.")
    return kind(**{name: _value(hints[name], value, _inside(where, name)) for name, value in values.items()})


def _value(hint: Any, value: object, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        inner = next(each for each in arguments if each is not type(None))
        return None if value is None else _value(inner, value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong(where, value, "a list")
        return tuple(_value(arguments[0], each, where) for each in value)
    if origin is Mapping:
        if not isinstance(value, dict):
            raise _wrong(where, value, "an object")
        return {str(name): _value(arguments[1], each, _inside(where, name)) for name, each in value.items()}
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, where)
    # A truth value is no number, though Python's is.
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise _wrong(where, value, {str: "text", int: "a whole number", bool: "true or false"}[hint])
    return value


def _inside(where: str, name: object) -> str:
    return f"{where}.{name}" if ": " in where else f"{where}: {name}"


def _wrong(where: str, value: object, wanted: str) -> ConfigError:
    shown = repr(value)
    found = shown if len(shown) < 60 else f"{shown[:57]}..."
    remedy = "Record the machine again with `hasten doctor --record FILE`."
    return ConfigError(where, found, f"Here is {wanted}.", remedy)
