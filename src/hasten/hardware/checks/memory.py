"""Memory: every figure that limits a job, and which of them counts.

Where the GPU shares the machine's memory, CUDA's free figure is the kernel's free memory, which takes page cache for
used: after a download it says far too little. There MemAvailable counts, less a reserve, for a machine whose one memory
is exhausted freezes. On a card with memory of its own CUDA's figure counts.
"""

from __future__ import annotations

from hasten.hardware.checks.facts import driver_of, is_unified
from hasten.hardware.evidence import Evidence
from hasten.hardware.finding import Finding
from hasten.hardware.memory import FLUSH, GIB, MEMINFO, Budget, Meminfo, budget, cgroup_of, parse_meminfo

_LITTLE = 4 * GIB
"""Less than this is too little for more than the embedded model."""


def memory_findings(evidence: Evidence) -> list[Finding]:
    """What memory there is, and which figure counts."""
    host, group = parse_meminfo(evidence.text(MEMINFO)), cgroup_of(evidence.text)
    if host is None:
        state = "skipped" if evidence.system not in ("", "Linux") else "warning"
        return [Finding(state, "memory", f"{MEMINFO} could not be read"), *_card(evidence)]
    group = group if group is not None and group.limit < host.total else None
    unified = is_unified(evidence)
    findings = []
    if unified:
        free = evidence.torch.devices[0].free_bytes if evidence.torch.devices else None
        findings += _unified(host, budget("unified", meminfo=host, cgroup=group, cuda_free=free))
    else:
        room = host.available if group is None else min(host.available, group.room)
        found = f"{host.total / GIB:.1f} GiB, {room / GIB:.1f} GiB available to this process"
        findings += [Finding("ok" if room >= _LITTLE else "warning", "memory", found), *_card(evidence)]
    if group is not None:
        room = f"{group.room / GIB:.1f} GiB of it free"
        found = f"this process' control group may use {group.limit / GIB:.1f} GiB, {room}; the machine has more"
        findings.append(Finding("note", "memory limit", found))
    return [*findings, *_swap(host, unified)]


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


def _unified(host: Meminfo, counts: Budget) -> list[Finding]:
    state = "ok" if counts.bytes >= _LITTLE else "warning"
    found = f"{host.total / GIB:.1f} GiB, {counts.bytes / GIB:.1f} GiB to plan with: {counts.rule}"
    findings = [Finding(state, "memory", found)]
    if counts.advice is not None:
        hides = counts.advice.partition("; ")[0]
        said = f"{hides}. hasten counts them as free; others may refuse to start until they are dropped"
        findings.append(Finding("note", "page cache", said, FLUSH))
    return findings


def _swap(host: Meminfo, unified: bool) -> list[Finding]:
    total, used = host.swap_total, host.swap_total - host.swap_free
    if used > GIB:
        found = f"{used / GIB:.1f} GiB of {total / GIB:.1f} GiB in use: memory was short, work will be slow"
        return [Finding("warning", "swap", found, "free -h   # and: top -o %MEM")]
    if total and unified:
        found = f"{total / GIB:.1f} GiB: where CPU and GPU share memory, swapping looks like a frozen machine"
        return [Finding("note", "swap", found, "sudo swapoff -a   # until the next start")]
    return []
