"""Where this runs: the machine and its system, container or not, limits, disks, and the hub where it was asked."""

from __future__ import annotations

from hasten.hardware.checks.facts import container_of, has_gpu, is_unified, is_wsl
from hasten.hardware.evidence import Evidence
from hasten.hardware.finding import Finding
from hasten.hardware.memory import GIB
from hasten.hardware.texts import last_line, system_name

LEAST_FREE, LITTLE_FREE = 1 * GIB, 20 * GIB
"""Bytes of a disk: nothing can be written; not enough for a model of 8 billion weights and its export."""
_USERS = "du -sh ~/.cache/hasten ~/.cache/huggingface runs   # what takes the room"
LEAST_SHM = 64 << 20
"""What Docker gives without being asked: too little for data loaders and several processes."""


def surrounding_findings(evidence: Evidence) -> list[Finding]:
    """What the surroundings are like."""
    return [_machine(evidence), *_limits(evidence), *_disks(evidence), *_hub(evidence)]


def _machine(evidence: Evidence) -> Finding:
    name = system_name(evidence.text("/etc/os-release")) or evidence.system or "an unknown system"
    parts = [f"{name} on {evidence.machine or 'an unknown processor'}"]
    if "/etc/dgx-release" in evidence.files:
        parts.append("DGX OS")
    if is_wsl(evidence):
        parts.append("WSL 2")
    parts.append(f"in {container_of(evidence)}" if container_of(evidence) else "no container")
    known = evidence.machine in ("x86_64", "aarch64", "AMD64", "arm64")
    return Finding("ok" if known else "warning", "machine", ", ".join(parts))


def _limits(evidence: Evidence) -> list[Finding]:
    findings, container = [], container_of(evidence)
    stack = evidence.limits.get("stack")
    if stack is not None and 0 <= stack < 1 << 20:
        found = f"{stack >> 10} KiB: libraries with threads crash on so little"
        findings.append(Finding("warning", "stack limit", found, "ulimit -s 65536"))
    shm = evidence.disks.get("/dev/shm")
    if container and shm and shm.total_bytes is not None and shm.total_bytes <= LEAST_SHM and has_gpu(evidence):
        found = f"{shm.total_bytes >> 20} MiB: too little for data loaders and for several GPUs"
        findings.append(Finding("warning", "/dev/shm", found, "docker run --ipc=host ..."))
    memlock = evidence.limits.get("memlock")
    if container and memlock is not None and 0 <= memlock < 1 << 26 and has_gpu(evidence) and not is_unified(evidence):
        found = f"{memlock >> 10} KiB may be pinned: copies to the GPU are slower"
        findings.append(Finding("note", "memlock limit", found, "docker run --ulimit memlock=-1 ..."))
    return findings


def _disks(evidence: Evidence) -> list[Finding]:
    findings, seen = [], set()
    for use, disk in evidence.disks.items():
        if use == "/dev/shm":
            continue
        if disk.free_bytes is None:
            findings.append(Finding("warning", f"disk ({use})", disk.failure or "could not be read"))
            continue
        if (disk.free_bytes, disk.total_bytes) in seen:  # one file system
            continue
        seen.add((disk.free_bytes, disk.total_bytes))
        free = f"{disk.free_bytes / GIB:.1f} GiB free"
        if disk.free_bytes < LEAST_FREE:
            findings.append(Finding("fault", f"disk ({use})", f"{free}: full", _USERS))
        elif disk.free_bytes < LITTLE_FREE:
            found = f"{free}: too little for a large model and its export"
            findings.append(Finding("warning", f"disk ({use})", found, _USERS))
        else:
            findings.append(Finding("ok", f"disk ({use})", free))
    return findings


def _hub(evidence: Evidence) -> list[Finding]:
    hub = evidence.hub
    if hub is None:
        return [Finding("skipped", "hub", "not asked (--hub asks)")]
    if hub.came and hub.text.strip().endswith(" bytes"):
        return [Finding("ok", "hub", "answers")]
    why = f"{hub.failure or 'an answer that could not be read'}: {last_line(hub.text)}".strip(": ")
    if evidence.environment.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        found = "HF_HUB_OFFLINE forbids it: only what is on this machine can be loaded"
        return [Finding("note", "hub", found, "unset HF_HUB_OFFLINE")]
    found = f"does not answer ({why}): models and data must be on this machine"
    return [Finding("warning", "hub", found)]
