"""Which memory figure counts."""

import dataclasses

from hasten.hardware.checks.memory import FLUSH, memory_findings
from hasten.hardware.evidence import DeviceFacts, Evidence, Reading, TorchFacts

GIB = 1 << 30


def meminfo(total, free, available, cached):
    names = {"MemTotal": total, "MemFree": free, "MemAvailable": available, "Cached": cached}
    return "".join(f"{name}: {value * GIB // 1024} kB\n" for name, value in names.items())


def machine(integrated, free=41 * GIB, **files):
    device = DeviceFacts(name="X", major=12, minor=1, total_bytes=121 * GIB, free_bytes=free, integrated=integrated)
    text = {"/proc/meminfo": Reading(meminfo(121, 41, 115, 72)), **files}
    return Evidence(system="Linux", torch=TorchFacts(version="2", available=True, devices=(device,)), files=text)


def said(evidence):
    return {finding.subject: finding for finding in memory_findings(evidence)}


def test_one_memory_for_both():
    found = said(machine(integrated=True))
    assert "107.4 GiB to plan with" in found["memory"].found and "CUDA says 41.0 GiB" in found["memory"].found
    assert found["page cache"].remedy == FLUSH
    assert "GPU memory" not in found
    assert "CUDA gives no figure" in said(machine(integrated=True, free=None))["memory"].found


def test_a_card_of_its_own():
    found = said(machine(integrated=False))
    assert "41.0 GiB free by CUDA's figure" in found["GPU memory"].found and "page cache" not in found
    assert found["GPU memory"].state == "warning"  # somebody else holds 80 GiB
    assert said(machine(integrated=False, free=None))["GPU memory"].state == "warning"


def test_the_control_group_limits_both():
    own = {"/proc/self/cgroup": Reading("0::/a")}
    group = own | {
        "/sys/fs/cgroup/a/memory.max": Reading(f"{64 * GIB}"),
        "/sys/fs/cgroup/a/memory.current": Reading("0"),
    }
    found = said(machine(True, **group))
    assert "60.0 GiB to plan with" in found["memory"].found
    unlimited = own | {"/sys/fs/cgroup/a/memory.max": Reading("max"), "/sys/fs/cgroup/a/memory.high": Reading("x")}
    assert "memory limit" not in said(machine(True, **unlimited))
    larger = {
        "/proc/self/cgroup": Reading("3:memory:/"),
        "/sys/fs/cgroup/memory/memory.limit_in_bytes": Reading(f"{500 * GIB}"),
    }
    assert "memory limit" not in said(machine(True, **larger))


def test_what_cannot_be_read_is_not_fine():
    nothing = dataclasses.replace(machine(True), files={})
    assert said(nothing)["memory"].state == "warning"
    assert said(dataclasses.replace(nothing, system="Darwin"))["memory"].state == "skipped"
