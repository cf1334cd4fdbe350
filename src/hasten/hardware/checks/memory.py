"""Memory: every figure that limits a job, and which of them counts.

Where the GPU shares the machine's memory, CUDA's free figure is the kernel's free memory, which takes page cache for
used: after a download it says far too little. There MemAvailable counts, less a reserve, for a machine whose one memory
is exhausted freezes. On a card with memory of its own CUDA's figure counts.
"""

from __future__ import annotations

from hasten.hardware.checks.facts import driver_of, is_unified
from hasten.hardware.evidence import Evidence
from hasten.hardware.finding import Finding
from hasten.hardware.texts import cached_in_group, limit_of, meminfo

GIB = 1 << 30
FLUSH = "sync; echo 3 | sudo tee /proc/sys/vm/drop_caches"
"""Empties the page cache. Printed, never run: it is the whole machine's."""

_LITTLE = 4 * GIB
"""Less than this is too little for more than the embedded model."""


def reserve_bytes(total_bytes: int) -> int:
    """What is left alone of one memory for everybody: a sixteenth, between 4 and 8 GiB."""
    return min(max(total_bytes // 16, 4 * GIB), 8 * GIB)


def memory_findings(evidence: Evidence) -> list[Finding]:
    """What memory there is, and which figure counts."""
    host = meminfo(evidence.text("/proc/meminfo"))
    total, available = host.get("MemTotal"), host.get("MemAvailable")
    if not total or available is None:
        state = "skipped" if evidence.system not in ("", "Linux") else "warning"
        return [Finding(state, "memory", "/proc/meminfo could not be read"), *_card(evidence)]
    limit = _tightest(evidence, total)
    findings = []
    if is_unified(evidence):
        findings += _unified(evidence, total, available, host, limit)
    else:
        findings.append(_host(total, available, limit))
        findings += _card(evidence)
    if limit is not None:
        room = f"{limit[1] / GIB:.1f} GiB of it free"
        found = f"this process' control group may use {limit[0] / GIB:.1f} GiB, {room}; the machine has more"
        findings.append(Finding("note", "memory limit", found))
    findings += _swap(host, is_unified(evidence))
    return findings


def _host(total: int, available: int, limit: tuple[int, int] | None) -> Finding:
    counts = available if limit is None else min(available, limit[1])
    found = f"{total / GIB:.1f} GiB, {counts / GIB:.1f} GiB available to this process"
    return Finding("ok" if counts >= _LITTLE else "warning", "memory", found)


def _card(evidence: Evidence) -> list[Finding]:
    devices = evidence.torch.devices
    if not devices:
        totals = [gpu.total_bytes for gpu in driver_of(evidence).gpus if gpu.total_bytes and not gpu.mig]
        return [Finding("note", "GPU memory", f"{total / GIB:.1f} GiB, as the driver says") for total in totals]
    findings = []
    for device in devices:
        said = f"{device.name}: {device.total_bytes / GIB:.1f} GiB"
        if device.free_bytes is None:
            findings.append(Finding("warning", "GPU memory", f"{said}; CUDA does not tell what is free of it"))
            continue
        taken = device.total_bytes - device.free_bytes
        found = f"{said}, {device.free_bytes / GIB:.1f} GiB free by CUDA's figure, which counts here"
        if taken > device.total_bytes // 4:
            found = f"{found}; others hold {taken / GIB:.1f} GiB"
            findings.append(Finding("warning", "GPU memory", found, "nvidia-smi   # lists who holds it"))
        else:
            findings.append(Finding("ok", "GPU memory", found))
    return findings


def _unified(
    evidence: Evidence, total: int, available: int, host: dict[str, int], limit: tuple[int, int] | None
) -> list[Finding]:
    reserve = reserve_bytes(total)
    counts = max(available - reserve, 0)
    counts = counts if limit is None else min(counts, limit[1])
    group = "" if limit is None else f"; the control group leaves {limit[1] / GIB:.1f} GiB"
    device = evidence.torch.devices[0] if evidence.torch.devices else None
    free = device.free_bytes if device else None
    cuda = "CUDA was not asked" if free is None else f"CUDA says {free / GIB:.1f} GiB"
    found = (
        f"one memory for CPU and GPU, {total / GIB:.1f} GiB: {available / GIB:.1f} GiB available less a reserve of "
        f"{reserve / GIB:.1f} GiB{group}, so {counts / GIB:.1f} GiB count ({cuda}, which does not count here)"
    )
    findings = [Finding("ok" if counts >= _LITTLE else "warning", "memory", found)]
    seen = host.get("MemFree") if free is None else free
    if seen is not None and available - seen > reserve:
        cached = host.get("Cached", 0) / GIB
        found = (
            f"{(available - seen) / GIB:.1f} GiB that could be given back look used to CUDA (page cache: {cached:.1f} "
            f"GiB). hasten counts them as free; other programs may refuse to start until they are given back"
        )
        findings.append(Finding("note", "page cache", found, FLUSH))
    return findings


def _tightest(evidence: Evidence, total: int) -> tuple[int, int] | None:
    """The control group's limit with the least room and that room; None where the machine is the limit."""
    found = []
    pairs = (("memory.max", "memory.current"), ("memory.high", "memory.current"))
    pairs += (("memory.limit_in_bytes", "memory.usage_in_bytes"),)
    for path, reading in evidence.files.items():
        for limit_name, usage_name in pairs:
            folder, _, name = path.rpartition("/")
            limit = limit_of(reading.text) if name == limit_name and "/cgroup" in path else None
            if limit is not None and limit < total:
                usage = limit_of(evidence.text(f"{folder}/{usage_name}")) or 0
                dropped = cached_in_group(evidence.text(f"{folder}/memory.stat"))  # when memory is needed
                found.append((limit, max(limit - max(usage - dropped, 0), 0)))
    return min(found, key=lambda pair: pair[1], default=None)


def _swap(host: dict[str, int], unified: bool) -> list[Finding]:
    total, free = host.get("SwapTotal", 0), host.get("SwapFree", 0)
    if total - free > GIB:
        found = f"{(total - free) / GIB:.1f} GiB of {total / GIB:.1f} GiB in use: memory was short, work will be slow"
        return [Finding("warning", "swap", found, "free -h   # and: top -o %MEM")]
    if total and unified:
        found = f"{total / GIB:.1f} GiB: where CPU and GPU share memory, swapping looks like a frozen machine"
        return [Finding("note", "swap", found, "sudo swapoff -a   # until the next start")]
    return []
