"""What this machine is: one frozen record, read once, passed to everything that decides.

torch is imported inside the functions, so that `import hasten` stays light and touches no device.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten.hardware.cores import read_quota
from hasten.hardware.memory import Budget, budget, read_cgroup, read_meminfo


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Facts about the device that will do the work."""

    device: str
    """Device string for torch: ``cpu`` or ``cuda:0``."""
    name: str
    """The product name, as the driver or the kernel gives it."""
    total_bytes: int
    """Memory of the device (on a CPU, of the machine or its control group), in bytes."""
    cores: int
    """CPU cores this process may use."""
    bf16: bool
    """Whether bfloat16 arithmetic runs natively on the device."""
    capability: tuple[int, int] | None = None
    """CUDA compute capability, or None on a CPU."""
    unified_memory: bool = False
    """Whether the device shares its memory with the CPU (DGX Spark)."""

    @property
    def is_cuda(self) -> bool:
        """Whether the device is a CUDA device."""
        return self.device.startswith("cuda")

    def as_dict(self) -> dict[str, object]:
        """Plain values for the run record."""
        return dataclasses.asdict(self)


def probe() -> Hardware:
    """Read the machine: the first visible CUDA device, otherwise the CPU."""
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return Hardware(
            device="cuda:0",
            name=properties.name,
            total_bytes=properties.total_memory,
            cores=usable_cores(),
            bf16=properties.major >= 8,
            capability=(properties.major, properties.minor),
            unified_memory=bool(getattr(properties, "is_integrated", False)),
        )
    total, group = read_meminfo().total, read_cgroup()
    return Hardware(
        device="cpu",
        name=cpu_name(_read_cpuinfo()) or platform.processor() or platform.machine(),
        total_bytes=min(total, group.limit) if group is not None else total,
        cores=usable_cores(),
        bf16=False,
    )


def cpu_name(cpuinfo: str) -> str:
    """The processor's product name in the text of ``/proc/cpuinfo``; empty where the kernel does not tell (Arm)."""
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == "model name"), "")


def _read_cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return ""


def usable_cores() -> int:
    """CPU cores this process is allowed to run on: those it is bound to, at most its control group's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = read_quota()
    return cores if quota is None else min(cores, quota)


def memory_budget(hardware: Hardware) -> Budget:
    """What this process may still take, and by which rule (`hasten.hardware.memory`).

    Args:
        hardware: the machine.
    """
    if not hardware.is_cuda:
        return budget("cpu", meminfo=read_meminfo(), cgroup=read_cgroup())
    import torch

    unused = torch.cuda.memory_reserved(hardware.device) - torch.cuda.memory_allocated(hardware.device)
    if not hardware.unified_memory:
        return budget("discrete", cuda_free=torch.cuda.mem_get_info(hardware.device)[0], unused=unused)
    try:
        free: int | None = torch.cuda.mem_get_info(hardware.device)[0]
    except RuntimeError:  # "not supported": it is only shown
        free = None
    return budget("unified", meminfo=read_meminfo(), cgroup=read_cgroup(), cuda_free=free, unused=unused)


def free_bytes(hardware: Hardware) -> int:
    """Memory that this process can still take, in bytes; the rule is `memory_budget`'s."""
    return memory_budget(hardware).bytes


def shares_memory(device: Any) -> bool:
    """Whether a torch device is a card that has no memory of its own: nothing is gained by moving anything off it."""
    import torch

    return device.type == "cuda" and bool(getattr(torch.cuda.get_device_properties(device), "is_integrated", False))


def peak_bytes(hardware: Hardware) -> int:
    """The most memory this process has held so far, in bytes: device memory on CUDA, resident memory on a CPU."""
    if hardware.is_cuda:
        import torch

        return torch.cuda.max_memory_allocated(hardware.device)
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def is_bf16_supported() -> bool:
    """Whether training in bfloat16 works here.

    True on CUDA devices of compute capability 8.0 and later and on every CPU (where torch emulates it if need be);
    scripts use it to choose between ``bf16=True`` and ``fp16=True``, and half precision does not train on a CPU.
    """
    machine = probe()
    return machine.bf16 or not machine.is_cuda
