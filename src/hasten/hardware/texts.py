"""Parsers of what programs and the kernel print: text in, facts out, None for what is not there.

They read text of any origin: cut off, in another language, with Windows' line ends, or no text at all. What they do not
recognise is not there; nothing is guessed.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass

Version = tuple[int, ...]

_NUMBERS = r"([0-9]{1,6}(?:\.[0-9]{1,6}){1,3})"


@dataclass(frozen=True)
class Gpu:
    """One line of `nvidia-smi`'s table."""

    name: str
    driver: str = ""
    total_bytes: int | None = None
    """None on machines with one memory, where it is not supported."""
    capability: tuple[int, int] | None = None
    mig: bool = False


def version_of(text: str) -> Version | None:
    """The leading numbers of a version: ``2.13.0a0+cu130`` gives (2, 13, 0)."""
    match = re.match(r"\s*v?([0-9]{1,6}(?:\.[0-9]{1,6})*)", text)
    return tuple(int(part) for part in match[1].split(".")) if match else None


def shown(version: Version | None) -> str:
    """A version as people write it."""
    return ".".join(map(str, version)) if version else "?"


def driver_in_header(text: str) -> tuple[str, Version | None]:
    """The driver's version and the newest CUDA that it runs, from what plain `nvidia-smi` prints above its table."""
    driver = re.search(rf"Driver Version:\s*{_NUMBERS}", text)
    cuda = re.search(rf"CUDA (?:UMD )?Version:\s*{_NUMBERS}", text)
    return (driver[1] if driver else ""), (version_of(cuda[1]) if cuda else None)


def driver_of_kernel(text: str) -> str:
    """The loaded kernel module's version, from ``/proc/driver/nvidia/version``."""
    match = re.search(rf"^NVRM version:.*?\s{_NUMBERS}\s", text, flags=re.MULTILINE)
    return match[1] if match else ""


def gpus_in_table(text: str) -> tuple[Gpu, ...]:
    """The GPUs in `nvidia-smi --query-gpu=... --format=csv`, by its header's names; none where it has no header."""
    lines = [line for line in text.replace("\x00", "").splitlines() if line.strip()]
    start = next((number for number, line in enumerate(lines) if _is_header(line)), None)
    if start is None:
        return ()
    names = [name.strip().partition(" ")[0] for name in next(csv.reader([lines[start]]))]
    found = []
    for line in lines[start + 1 :]:
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != len(names):  # cut off, or a message
            continue
        cell = dict(zip(names, cells, strict=True))
        if not cell["name"] or cell["name"].startswith("["):
            continue
        capability = re.fullmatch(r"([0-9]{1,2})\.([0-9])", cell.get("compute_cap", ""))
        found.append(
            Gpu(
                name=cell["name"],
                driver=cell["driver_version"] if re.fullmatch(_NUMBERS, cell["driver_version"]) else "",
                total_bytes=_mebibytes(cell.get("memory.total", "")),
                capability=(int(capability[1]), int(capability[2])) if capability else None,
                mig=cell.get("mig.mode.current", "") == "Enabled",
            )
        )
    return tuple(found)


def release_of(text: str) -> tuple[int, int] | None:
    """The CUDA release in what `nvcc --version` and `ptxas --version` print."""
    match = re.search(r"\brelease ([0-9]{1,3})\.([0-9]{1,3}),", text)
    return (int(match[1]), int(match[2])) if match else None


def system_name(text: str) -> str:
    """The system's full name, from ``/etc/os-release``."""
    match = re.search(r'^PRETTY_NAME="?([^"\n\r]{1,100})"?\s*$', text, flags=re.MULTILINE)
    return match[1].strip() if match else ""


def architecture_of(name: str) -> tuple[str, tuple[int, int], str] | None:
    """What ``sm_121a`` names: (`sm` or `compute`, (12, 1), the letter behind it)."""
    match = re.fullmatch(r"(sm|compute)_([0-9]{1,2})([0-9])([af]?)", name)
    return (match[1], (int(match[2]), int(match[3])), match[4]) if match else None


def last_line(text: str, most: int = 200) -> str:
    """The last line of a text that says something: of a traceback, the error; cut where it is long."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = lines[-1] if lines else ""
    return line if len(line) <= most else f"{line[:most]}..."


def _is_header(line: str) -> bool:
    names = [name.strip().partition(" ")[0] for name in line.split(",")]
    return "name" in names and "driver_version" in names and len(set(names)) == len(names)


def _mebibytes(text: str) -> int | None:
    match = re.fullmatch(r"([0-9]{1,9})(?: MiB)?", text)
    return int(match[1]) << 20 if match else None
