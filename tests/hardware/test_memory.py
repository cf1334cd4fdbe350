"""Budgets: pure functions of the kernel's text and CUDA's figure, on made-up machines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.hardware import memory as module
from hasten.hardware.memory import (
    FLUSH,
    GIB,
    Cgroup,
    Meminfo,
    budget,
    cgroup_files,
    cgroup_of,
    own_groups,
    parse_limit,
    parse_meminfo,
    parse_stat,
    read_cgroup,
    read_meminfo,
    reserve_of,
)


def meminfo_text(total=121, free=41, available=115, cached=72):
    rows = {"MemTotal": total, "MemFree": free, "MemAvailable": available, "Buffers": 1, "Cached": cached}
    return "".join(f"{name}:{int(value * 2**20):>15} kB\n" for name, value in rows.items()) + "HugePages_Total:   0\n"


SPARK = parse_meminfo(meminfo_text())


def test_unified_memory_budget_a8():
    """CUDA calls cached files used; what is available less the reserve is the budget, and both figures are shown."""
    found = budget("unified", meminfo=SPARK, cuda_free=41 * GIB)
    assert found.reserve == 121 * GIB // 16
    assert found.bytes == 115 * GIB - found.reserve
    assert "MemAvailable 115.0 GiB" in found.rule and "CUDA says 41.0 GiB free" in found.rule
    assert found.figures["mem_available"] == 115 * GIB and found.figures["cuda_free"] == 41 * GIB
    assert found.figures["mem_free"] == 41 * GIB
    unsupported = budget("unified", meminfo=SPARK, cuda_free=None)  # the library says "not supported"
    assert unsupported.bytes == found.bytes and "CUDA gives no figure" in unsupported.rule and not unsupported.advice
    discrete = budget("discrete", meminfo=SPARK, cuda_free=41 * GIB)
    assert (discrete.bytes, discrete.reserve, discrete.rule) == (41 * GIB, 0, "CUDA's figure")


def test_cached_files_that_hide_memory_are_said_with_the_command():
    advice = budget("unified", meminfo=SPARK, cuda_free=41 * GIB).advice
    assert advice is not None and "74.0 GiB" in advice and f"`{FLUSH}`" in advice
    assert budget("unified", meminfo=SPARK, cuda_free=112 * GIB).advice is None
    assert budget("discrete", cuda_free=41 * GIB).advice is None
    assert budget("cpu", meminfo=SPARK).advice is None


def test_what_torch_holds_unused_counts():
    plain = budget("unified", meminfo=SPARK, cuda_free=41 * GIB)
    held = budget("unified", meminfo=SPARK, cuda_free=41 * GIB, unused=3 * GIB)
    assert held.bytes == plain.bytes + 3 * GIB and "3.0 GiB that torch holds unused" in held.rule
    assert budget("discrete", cuda_free=GIB, unused=GIB).bytes == 2 * GIB


def test_a_control_group_caps_the_budget():
    group = Cgroup(limit=64 * GIB, room=56 * GIB)
    unified = budget("unified", meminfo=SPARK, cgroup=group, cuda_free=41 * GIB)
    assert unified.bytes == 52 * GIB and "leaves 56.0 GiB of 64.0 GiB" in unified.rule  # less a reserve, of 64
    cpu = budget("cpu", meminfo=SPARK, cgroup=group)
    assert cpu.bytes == 56 * GIB - 2 * GIB and cpu.figures["cgroup_limit"] == 64 * GIB
    wide = Cgroup(limit=500 * GIB, room=500 * GIB)
    assert budget("unified", meminfo=SPARK, cgroup=wide).bytes == 115 * GIB - 121 * GIB // 16


def test_a_budget_is_never_negative():
    full = Meminfo(total=8 * GIB, free=0, available=0)
    assert budget("unified", meminfo=full).bytes == 0 and budget("cpu", meminfo=full).bytes == 0


def test_reserves():
    assert [reserve_of("unified", total * GIB) for total in (16, 64, 96, 256)] == [4 * GIB, 4 * GIB, 6 * GIB, 8 * GIB]
    assert [reserve_of("cpu", total * GIB) for total in (16, 256)] == [GIB // 2, 2 * GIB]
    assert reserve_of("discrete", 80 * GIB) == 0


def test_a_kernel_without_an_estimate():
    text = "MemTotal: 1000 kB\nMemFree: 100 kB\nCached: 200 kB\n"
    assert parse_meminfo(text) == Meminfo(total=1024000, free=102400, available=307200, cached=204800)


@pytest.mark.parametrize("text", ["", "MemFree: 3 kB\n", "MemTotal: kB\n", "MemTotal: -5 kB\n", "MemTotal: 5 MB\n"])
def test_no_count(text):
    assert parse_meminfo(text) is None


@given(
    st.text() | st.lists(st.sampled_from(["MemTotal:", "MemFree:", " 12 kB", "\n", ":", "٣", "9" * 40])).map("".join)
)
def test_mangled_text_never_raises(text):
    found = parse_meminfo(text)
    assert found is None or 0 <= found.available <= found.total
    limit = parse_limit(text)
    assert limit is None or 0 <= limit < 2**60
    assert parse_stat(text, "inactive_file") >= 0
    own_groups(text)


def test_limits():
    assert parse_limit("max\n") is None and parse_limit("") is None
    assert parse_limit("9223372036854771712\n") is None, "version 1 writes this where there is none"
    assert parse_limit("1073741824\n") == GIB


def test_own_groups():
    mixed = "4:memory,hugetlb:/docker/abc\n1:cpu:/docker/abc\n0::/\n"
    assert own_groups(mixed) == ("/", "/docker/abc")
    assert own_groups("0::/user.slice/run-1.scope\n") == ("/user.slice/run-1.scope", None)
    assert own_groups("nonsense\n0:\n") == (None, None)


def group_of(own, **files):
    """The limit in made-up files below the mount of control groups."""
    texts = {"/proc/self/cgroup": own, **{f"/sys/fs/cgroup/{path}": text for path, text in files.items()}}
    return cgroup_of(lambda path: texts.get(path, ""))


def test_the_tightest_of_nested_groups():
    own, around = (
        "0::/a.slice/b.scope\n",
        {"a.slice/memory.max": f"{4 * GIB}\n", "a.slice/memory.current": f"{3 * GIB}\n"},
    )
    inner = {"a.slice/b.scope/memory.max": f"{2 * GIB}\n", "a.slice/b.scope/memory.current": "0\n"}
    assert group_of(own, **around, **inner) == Cgroup(limit=2 * GIB, room=GIB), "one's limit, the other's room"
    around["a.slice/memory.stat"] = f"anon 5\ninactive_file {GIB}\nactive_file {GIB}\n"
    assert group_of(own, **around, **inner) == Cgroup(limit=2 * GIB, room=2 * GIB), "cached files can be dropped"


def test_a_container_that_sees_the_hosts_path():
    files = {"memory.max": f"{GIB}\n", "memory.current": "7\n"}
    assert group_of("0::/docker/0123\n", **files) == Cgroup(limit=GIB, room=GIB - 7)
    assert group_of("0::/../other\n", **files) == Cgroup(limit=GIB, room=GIB - 7)
    assert group_of("0::/\n", **{**files, "memory.max": "max\n"}) is None


def test_version_1():
    own, folder = "3:cpuset:/x\n2:memory:/x/y\n", "memory/x/y/memory"
    assert group_of(own) is None
    files = {f"{folder}.limit_in_bytes": "9223372036854771712\n", f"{folder}.usage_in_bytes": "5\n"}
    assert group_of(own, **files) is None
    files |= {f"{folder}.limit_in_bytes": f"{GIB}\n", f"{folder}.stat": "inactive_file 1\ntotal_inactive_file 3\n"}
    assert group_of(own, **files) == Cgroup(limit=GIB, room=GIB - 2)


def test_this_machine():
    found = read_meminfo()
    assert 0 < found.available <= found.total
    group = read_cgroup()
    assert group is None or group.limit > 0


def test_a_system_without_proc(monkeypatch):
    import psutil

    monkeypatch.setattr(module, "MEMINFO", "/proc/none of this name")
    assert read_meminfo().total == psutil.virtual_memory().total


def test_a_record_is_plain_values():
    import json

    record = budget("unified", meminfo=SPARK, cuda_free=41 * GIB).as_dict()
    assert json.loads(json.dumps(record)) == record and record["figures"]["cuda_free"] == 41 * GIB


def test_a_group_cannot_lead_out():
    assert cgroup_files("0::/../../etc") == [
        f"{mount}/{name}"
        for mount in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
        for name in ("memory.max", "memory.high", "memory.current", "memory.stat")
    ]
    assert cgroup_files("nonsense") == []


def test_figures_without_end():
    assert parse_limit("9" * 5000) is None and parse_meminfo(f"MemTotal: {'9' * 5000} kB\n") is None
