"""The machine that an estimate is for: this one, one that was recorded elsewhere, or a size.

A recorded machine is what `hasten doctor --record FILE` writes. One without a device is a CPU.
"""

from __future__ import annotations

import re
from pathlib import Path

from hasten.errors import ConfigError
from hasten.estimate.need import Machine
from hasten.hardware.evidence import load_evidence
from hasten.hardware.memory import MEMINFO, Budget, budget, cgroup_of, parse_meminfo, said
from hasten.hardware.probe import Hardware, memory_budget, probe

_SIZE = re.compile(r"^\s*(?P<number>\d{1,15}(\.\d{1,15})?)\s*(?P<unit>[KMGT]i?B?)\s*$", re.IGNORECASE)
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4}


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
        unit = found["unit"].lower()
        size = int(float(found["number"]) * (1024 if "i" in unit else 1000) ** _POWERS[unit[0]])
    if size <= 0:
        raise ConfigError("--memory", repr(text), "It is a size, such as 24GB or 24GiB.", "Write one.")
    card = Hardware(device="cuda:0", name=f"a GPU with {said(size)}", total_bytes=size, cores=1, bf16=True)
    return Machine(hardware=card, budget=Budget(bytes=size, rule="as given; all of it free", reserve=0))


def recorded(path: Path) -> Machine:
    """A machine from its record.

    Raises:
        ConfigError: the file is no record, or lacks what the machine's rule needs.
    """
    evidence = load_evidence(path)
    meminfo, cgroup = parse_meminfo(evidence.text(MEMINFO)), cgroup_of(evidence.text)
    device = evidence.torch.devices[0] if evidence.torch.devices else None
    if meminfo is None and (device is None or device.integrated):
        raise _wrong(path, f"no text of {MEMINFO} in it")
    if device is None:
        assert meminfo is not None, "looked at above"
        total = min(meminfo.total, cgroup.limit) if cgroup else meminfo.total
        cpu = Hardware(device="cpu", name=evidence.machine or "CPU", total_bytes=total, cores=1, bf16=False)
        return Machine(hardware=cpu, budget=budget("cpu", meminfo=meminfo, cgroup=cgroup))
    if device.free_bytes is None and not device.integrated:
        raise _wrong(path, "CUDA did not tell what its device has free")
    capability = (device.major, device.minor)
    hardware = Hardware(
        device="cuda:0",
        name=device.name,
        total_bytes=device.total_bytes,
        cores=1,
        bf16=capability >= (8, 0),
        capability=capability,
        unified_memory=device.integrated,
    )
    kind = "unified" if device.integrated else "discrete"
    return Machine(hardware=hardware, budget=budget(kind, meminfo=meminfo, cgroup=cgroup, cuda_free=device.free_bytes))


def _wrong(path: Path, value: str) -> ConfigError:
    rule = "A recorded machine is what `hasten doctor --record FILE` writes."
    return ConfigError(str(path), value, rule, "Record the machine again.")
