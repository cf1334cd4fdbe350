"""The machine that an estimate is for: this one, one that was recorded elsewhere, or a size.

A recorded machine is JSON, as `hasten doctor --record FILE` writes it: what torch saw (``torch.devices``) and the texts
of the kernel's files (``files``). A shorter form of one's own is read too:

    {"device": {"name", "capability", "integrated", "total_bytes", "free_bytes"}, "meminfo": text,
     "cgroup": {"limit_bytes", "usage_bytes", "inactive_file_bytes"}}

A machine without a device is a CPU.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from hasten.errors import ConfigError
from hasten.estimate.need import Machine
from hasten.hardware.memory import MEMINFO, Budget, Cgroup, budget, cgroup_of, parse_meminfo, said
from hasten.hardware.probe import Hardware, memory_budget, probe

_SIZE = re.compile(r"^\s*(?P<number>\d+(\.\d+)?)\s*(?P<unit>[KMGT]i?B?)?\s*$", re.IGNORECASE)
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4}
_RULE = "A recorded machine is what `hasten doctor --record FILE` writes."


def this_machine() -> Machine:
    """The one that this runs on."""
    hardware = probe()
    return Machine(hardware=hardware, budget=memory_budget(hardware))


def of_size(text: str) -> Machine:
    """A made-up GPU with so much free memory.

    Args:
        text: such as ``24GB`` (10^9 bytes each) or ``24GiB`` (2^30).

    Raises:
        ConfigError: no size.
    """
    found = _SIZE.match(text)
    size = 0
    if found is not None:
        unit = (found["unit"] or "").lower()
        size = int(float(found["number"]) * (1024 if "i" in unit else 1000) ** _POWERS.get(unit[:1], 0))
    if size <= 0:
        raise ConfigError("--memory", repr(text), "It is a size, such as 24GB or 24GiB.", "Write one.")
    card = Hardware(device="cuda:0", name=f"a GPU with {said(size)}", total_bytes=size, cores=1, bf16=True)
    return Machine(hardware=card, budget=Budget(bytes=size, rule="as given; all of it free", reserve=0))


def recorded(path: Path) -> Machine:
    """A machine from its record.

    Raises:
        ConfigError: the file is no record, or lacks what the machine's rule needs.
    """
    values = _read(path)
    device, meminfo_text, cgroup = _device(values, path), _meminfo(values), _cgroup(values, path)
    meminfo = parse_meminfo(meminfo_text)
    integrated = device is not None and bool(device.get("integrated"))
    if meminfo is None and (device is None or integrated):
        raise _wrong(path, f"no text of {MEMINFO} in it")
    if device is None:
        assert meminfo is not None, "looked at above"
        total = min(meminfo.total, cgroup.limit) if cgroup else meminfo.total
        cpu = Hardware(device="cpu", name=str(values.get("machine") or "CPU"), total_bytes=total, cores=1, bf16=False)
        return Machine(hardware=cpu, budget=budget("cpu", meminfo=meminfo, cgroup=cgroup))
    capability = _capability(device)
    total, free = _bytes(device, "total_bytes", path), device.get("free_bytes")
    if free is not None:
        free = _bytes(device, "free_bytes", path)
    elif not integrated:
        raise _wrong(path, "its device has no free_bytes")
    hardware = Hardware(
        device="cuda:0",
        name=str(device.get("name", "a GPU")),
        total_bytes=total,
        cores=1,
        bf16=capability is None or capability >= (8, 0),
        capability=capability,
        unified_memory=integrated,
    )
    kind = "unified" if integrated else "discrete"
    return Machine(hardware=hardware, budget=budget(kind, meminfo=meminfo, cgroup=cgroup, cuda_free=free))


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as cause:
        raise _wrong(path, f"it cannot be read ({cause.strerror or cause})") from cause
    except (ValueError, RecursionError) as cause:
        raise _wrong(path, f"no JSON ({str(cause)[:200]})") from cause
    if not isinstance(values, dict):
        raise _wrong(path, "no JSON object")
    return values


def _device(values: dict[str, Any], path: Path) -> dict[str, Any] | None:
    found = values.get("device")
    torch = values.get("torch")
    if found is None and isinstance(torch, dict) and torch.get("devices"):
        devices = torch["devices"]
        found = devices[0] if isinstance(devices, list) else devices
    if found is not None and not isinstance(found, dict):
        raise _wrong(path, "its device is no object")
    return found


def _capability(device: dict[str, Any]) -> tuple[int, int] | None:
    found: Any = device.get("capability") or [device.get("major"), device.get("minor")]
    if isinstance(found, str):
        found = found.split(".")
    try:
        major, minor = (int(each) for each in found)
    except (TypeError, ValueError):
        return None
    return major, minor


def _bytes(device: dict[str, Any], name: str, path: Path) -> int:
    value = device.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise _wrong(path, f"{name} of its device is {value!r}")
    return value


def _meminfo(values: dict[str, Any]) -> str:
    return str(values["meminfo"]) if "meminfo" in values else _file(values, MEMINFO)


def _cgroup(values: dict[str, Any], path: Path) -> Cgroup | None:
    own = values.get("cgroup")
    if not own:
        return cgroup_of(lambda name: _file(values, name))
    try:
        figures = [int(own.get(f"{name}_bytes", 0)) for name in ("limit", "usage", "inactive_file")]
    except (AttributeError, TypeError, ValueError) as cause:
        raise _wrong(path, "its cgroup has no figures") from cause
    limit, usage, inactive = figures
    return Cgroup(limit=limit, usage=usage, inactive_file=inactive) if limit > 0 else None


def _file(values: dict[str, Any], name: str) -> str:
    files = values.get("files")
    found = files.get(name, "") if isinstance(files, dict) else ""
    return str(found.get("text", "")) if isinstance(found, dict) else str(found)


def _wrong(path: Path, value: str) -> ConfigError:
    return ConfigError(str(path), value, _RULE, "Record the machine again.")
