"""Quotas of control groups: texts as Docker, Kubernetes and systemd leave them, and texts of any kind."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.hardware.cores import parse_max, quota_of, read_quota

FIRST = "5:cpuacct,cpu:/docker/abc\n4:memory:/docker/abc\n1:name=systemd:/docker/abc\n"


def quota(own, **files):
    texts = {"/proc/self/cgroup": own, **{f"/sys/fs/cgroup/{path}": text for path, text in files.items()}}
    return quota_of(lambda path: texts.get(path, ""))


def test_parse_max():
    assert parse_max("150000 100000\n") == 1.5
    assert parse_max("50000 100000") == 0.5
    assert parse_max("max 100000\n") is None
    for mangled in (
        "",
        "150000",
        "150000 0",
        "-1 100000",
        "0 100000",
        "1 2 3",
        "१५ १०",
        "9" * 40 + " 1",
        "\x00\x00 \x00",
    ):
        assert parse_max(mangled) is None


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),  # in a container of its own name space: /
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "10000 100000\n"}, 1),
        ({"cpu.max": "400000 100000\n"}, 4),
        ({"cpu.max": "nonsense"}, None),
        ({}, None),
    ],
)
def test_version_2(files, cores):
    assert quota("0::/\n", **files) == cores


@pytest.mark.parametrize(
    ("slice_", "pod", "container", "cores"),
    [
        ("max 100000", "200000 100000", "max 100000", 2),
        ("300000 100000", "800000 100000", "600000 100000", 3),
        ("max 100000", "max 100000", "30000 20000", 2),
        ("max 100000", "max 100000", "max 100000", None),
    ],
)
def test_the_tightest_around_it_counts(slice_, pod, container, cores):
    files = {"kube.slice/cpu.max": slice_, "kube.slice/pod/cpu.max": pod, "kube.slice/pod/one/cpu.max": container}
    assert quota("0::/kube.slice/pod/one\n", **files) == cores


def test_version_1():
    def files(own, around="-1", mount="cpu,cpuacct"):
        return {
            f"{mount}/docker/abc/cpu.cfs_quota_us": f"{own}\n",
            f"{mount}/docker/abc/cpu.cfs_period_us": "50000\n",
            f"{mount}/cpu.cfs_quota_us": f"{around}\n",
            f"{mount}/cpu.cfs_period_us": "100000\n",
        }

    assert quota(FIRST, **files("120000")) == 3
    assert quota(FIRST, **files("120000", around="100000")) == 1
    assert quota(FIRST, **files("-1")) is None
    assert quota(FIRST, **files("200000", mount="cpu")) == 4
    assert quota(FIRST, **{"cpu/docker/abc/cpu.cfs_quota_us": "1000"}) is None, "a quota of no period"
    assert quota("4:memory:/docker/abc\n", **files("120000")) is None


def test_both_versions_beside_each_other():
    files = {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000", "unified/cpu.max": "200000 100000"}
    assert quota("1:cpu:/\n0::/\n", **files) == 2


def test_a_path_that_leaves_the_mount_is_not_followed():
    assert quota("0::/../../etc\n", **{"../../etc/cpu.max": "1 1", "cpu.max": "500000 100000"}) == 5


@given(st.text(string.printable, max_size=60), st.text(string.printable, max_size=30))
def test_no_text_is_a_fault(own, text):
    found = quota_of(lambda path: own if path == "/proc/self/cgroup" else text)
    assert found is None or found >= 1


def test_this_machine():
    found = read_quota()
    assert found is None or found >= 1
