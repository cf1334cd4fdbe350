"""How much memory a process may still take: pure functions of text and figures, and the one place that reads them.

Three kinds of machine, three rules:

discrete   CUDA's own figure: the card's memory is nobody else's business
unified    ``MemAvailable`` less a reserve, at most what a control group leaves. CUDA's figure is not used there: it is
           the kernel's free memory, in which files that were read (and would be dropped at once) count as taken
cpu        ``MemAvailable``, at most what a control group leaves, less a reserve

On unified machines exhaustion is no error but the end of the machine: nothing is killed in order, and pinned memory
cannot be taken back. So a sixteenth of it, between 4 and 8 GiB, is the reserve that no plan touches: what a desktop and
its services need when they wake up (2 to 4 GiB), and the driver's and CUDA's own tables, which nobody counts. On a CPU,
where the kernel ends the largest process, a thirty-second and at most 2 GiB are left to what else grows.

In every rule memory that torch holds and does not use counts as free. NVML is not asked: it has no figures of shared
memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

GIB = 2**30
Kind = Literal["discrete", "unified", "cpu"]
FLUSH = "sync; echo 3 | sudo tee /proc/sys/vm/drop_caches"
"""Drops cached files. It is printed, never run: it needs root, and slows other programs down."""
_DIGITS = 20
"""More than any figure of bytes has: a mangled text's."""
_UNLIMITED = 2**60
"""Limits from here on mean none: control groups of version 1 write the largest multiple of a page."""
MEMINFO = "/proc/meminfo"
OWN_GROUPS = "/proc/self/cgroup"
GROUPS = "/sys/fs/cgroup"


@dataclass(frozen=True, kw_only=True)
class Meminfo:
    """The kernel's own count of a machine's memory, in bytes."""

    total: int
    free: int
    available: int
    """Free, or taken by what the kernel drops when asked: cached files."""
    cached: int = 0
    swap_total: int = 0
    swap_free: int = 0


@dataclass(frozen=True, kw_only=True)
class Cgroup:
    """The tightest limit that a control group (a container, a service) puts on this process, in bytes."""

    limit: int
    """The lowest of this group and those around it."""
    room: int
    """What may still be taken: the least that any of them leaves."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Memory that may be planned with, and where the figure comes from."""

    bytes: int
    rule: str
    """In words, with its figures."""
    reserve: int
    figures: Mapping[str, int] = field(default_factory=dict)
    """Everything that was looked at, in bytes."""
    advice: str | None = None
    """What hides memory, and the command against it."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the run record."""
        return {
            "bytes": self.bytes,
            "rule": self.rule,
            "reserve_bytes": self.reserve,
            "figures": dict(self.figures),
            "advice": self.advice,
        }


def said(amount: float) -> str:
    """Bytes as people read them."""
    return f"{amount / GIB:.1f} GiB"


def parse_meminfo(text: str) -> Meminfo | None:
    """The text of ``/proc/meminfo``; None where it has no total.

    A kernel without ``MemAvailable`` (before 3.14) is taken at what is free and cached.
    """
    found: dict[str, int] = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        amount = _whole(words[0]) if words else None
        if amount is not None and words[1:] in ([], ["kB"]):
            found.setdefault(name.strip(), amount * (1024 if words[1:] else 1))
    total = found.get("MemTotal", 0)
    if not total:
        return None
    free, cached = found.get("MemFree", 0), found.get("Cached", 0)
    available = found.get("MemAvailable", free + cached)
    return Meminfo(
        total=total,
        free=free,
        available=min(available, total),
        cached=cached,
        swap_total=found.get("SwapTotal", 0),
        swap_free=found.get("SwapFree", 0),
    )


def parse_limit(text: str) -> int | None:
    """A control group's limit in bytes, as ``memory.max`` or ``memory.limit_in_bytes`` has it; None: there is none."""
    amount = _whole(text.strip())
    return None if amount is None or amount >= _UNLIMITED else amount


def parse_stat(text: str, name: str) -> int:
    """A figure in the text of a control group's ``memory.stat``; 0 where it is missing."""
    for line in text.splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == name:
            return _whole(words[1]) or 0
    return 0


def _whole(word: str) -> int | None:
    return int(word) if word.isdecimal() and word.isascii() and len(word) <= _DIGITS else None


def own_groups(text: str, controller: str = "memory") -> tuple[str | None, str | None]:
    """The paths in ``/proc/self/cgroup``: of version 2, and of a controller of version 1; None: there is none."""
    second, first = None, None
    for line in text.splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3 and parts[2].startswith("/"):
            if parts[:2] == ["0", ""]:
                second = parts[2]
            elif controller in parts[1].split(","):
                first = parts[2]
    return second, first


def reserve_of(kind: Kind, total: int) -> int:
    """Memory that no plan touches, in bytes.

    Args:
        kind: of the machine.
        total: bytes of its memory, or of its control group.
    """
    if kind == "discrete":
        return 0
    if kind == "unified":
        return min(max(total // 16, 4 * GIB), 8 * GIB)
    return min(total // 32, 2 * GIB)


def budget(
    kind: Kind,
    *,
    meminfo: Meminfo | None = None,
    cgroup: Cgroup | None = None,
    cuda_free: int | None = None,
    unused: int = 0,
) -> Budget:
    """What may be planned with.

    Args:
        kind: of the machine.
        meminfo: the machine's own count; needed for all but discrete cards.
        cgroup: the tightest limit on this process, if any.
        cuda_free: CUDA's figure. On unified machines it is shown only, and may be missing ("not supported").
        unused: bytes that torch holds on the device and does not use.
    """
    figures = {"unused_by_torch": unused} if unused else {}
    held = f", and {said(unused)} that torch holds unused" if unused else ""
    if kind == "discrete":
        assert cuda_free is not None, "a discrete card has its own figure"
        figures["cuda_free"] = cuda_free
        return Budget(bytes=cuda_free + unused, rule=f"CUDA's figure{held}", reserve=0, figures=figures)
    assert meminfo is not None, "machines without a card of their own memory are measured by the kernel"
    figures |= {"mem_total": meminfo.total, "mem_free": meminfo.free, "mem_available": meminfo.available}
    if cuda_free is not None:
        figures["cuda_free"] = cuda_free
    limit = ""
    if cgroup is not None:
        figures |= {"cgroup_limit": cgroup.limit, "cgroup_room": cgroup.room}
        limit = f"; the control group leaves {said(cgroup.room)} of {said(cgroup.limit)}"
    if kind == "cpu":
        reserve = reserve_of(kind, min(meminfo.total, cgroup.limit) if cgroup else meminfo.total)
        free = min(meminfo.available, cgroup.room) if cgroup else meminfo.available
        rule = f"MemAvailable {said(meminfo.available)}{limit}, less a reserve of {said(reserve)}"
        return Budget(bytes=max(0, free - reserve), rule=rule, reserve=reserve, figures=figures)
    reserve = reserve_of(kind, min(meminfo.total, cgroup.limit) if cgroup else meminfo.total)
    free = max(0, (min(meminfo.available, cgroup.room) if cgroup else meminfo.available) - reserve)
    theirs = f"CUDA says {said(cuda_free)} free" if cuda_free is not None else "CUDA gives no figure"
    less = f"MemAvailable {said(meminfo.available)} less a reserve of {said(reserve)}"
    rule = f"shared memory: {less}{limit}{held} ({theirs})"
    return Budget(
        bytes=free + unused, rule=rule, reserve=reserve, figures=figures, advice=_page_cache(meminfo, cuda_free)
    )


def _page_cache(meminfo: Meminfo, cuda_free: int | None) -> str | None:
    hidden = 0 if cuda_free is None else meminfo.available - cuda_free
    if hidden <= reserve_of("unified", meminfo.total):  # every healthy machine caches some files
        return None
    return (
        f"cached files hide {said(hidden)} from CUDA's figure; they are dropped when memory is needed, and programs "
        f"that go by that figure see it again after `{FLUSH}`"
    )


def cgroup_of(read: Callable[[str], str]) -> Cgroup | None:
    """The tightest limit on a process, of its control group or one around it; None: there is none.

    Args:
        read: the text of a file by its path; nothing where it is not there.
    """
    groups = [_group(read, folder, names) for folder, names in _group_folders(read(OWN_GROUPS))]
    found = [group for group in groups if group is not None]
    if not found:
        return None
    return Cgroup(limit=min(group.limit for group in found), room=min(group.room for group in found))


def cgroup_files(own: str) -> list[str]:
    """Every file that `cgroup_of` may read, for the text of ``/proc/self/cgroup``."""
    return [f"{folder}/{name}" for folder, names in _group_folders(own) for name in (*names.limits, names.usage, _STAT)]


@dataclass(frozen=True)
class _Names:
    limits: tuple[str, ...]
    """The lowest holds: above `memory.high` a group is slowed down until it gives memory back."""
    usage: str
    files: tuple[str, ...]
    """Of the usage, cached files: dropped when memory is needed."""


_STAT = "memory.stat"
_SECOND = _Names(("memory.max", "memory.high"), "memory.current", ("inactive_file", "active_file"))
_FIRST = _Names(("memory.limit_in_bytes",), "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))


def _group_folders(own: str) -> list[tuple[PurePosixPath, _Names]]:
    second, first = own_groups(own)
    found = []
    if second is not None:
        for mount in (GROUPS, f"{GROUPS}/unified"):
            found += [(folder, _SECOND) for folder in levels(mount, second)]
    if first is not None:
        found += [(folder, _FIRST) for folder in levels(f"{GROUPS}/memory", first)]
    return found


def levels(mount: str, path: str) -> list[PurePosixPath]:
    """A group's folder and those around it. In a container the path may be the host's: then only the mount is there."""
    inside = PurePosixPath(path).relative_to("/")
    if ".." in inside.parts:
        return [PurePosixPath(mount)]
    return [PurePosixPath(mount) / part for part in (inside, *inside.parents)]


def _group(read: Callable[[str], str], folder: PurePosixPath, names: _Names) -> Cgroup | None:
    limits = [parse_limit(read(f"{folder}/{name}")) for name in names.limits]
    limit = min((each for each in limits if each is not None), default=None)
    usage = parse_limit(read(f"{folder}/{names.usage}"))
    if limit is None or usage is None:
        return None
    cached = sum(parse_stat(read(f"{folder}/{_STAT}"), name) for name in names.files)
    return Cgroup(limit=limit, room=max(0, limit - max(0, usage - cached)))


def read_meminfo() -> Meminfo:
    """The machine's own count now; from psutil where there is no ``/proc``."""
    found = parse_meminfo(text_of(MEMINFO))
    if found is None:
        import psutil

        memory = psutil.virtual_memory()
        return Meminfo(total=memory.total, free=memory.free, available=memory.available)
    return found


def read_cgroup() -> Cgroup | None:
    """The tightest limit on this process now."""
    return cgroup_of(text_of)


def text_of(path: str) -> str:
    """A file of the kernel's; nothing where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux, another version of control groups, or not ours to read
        return ""
