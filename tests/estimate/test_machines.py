"""Machines from records and sizes."""

import json
from pathlib import Path

import pytest

from hasten.errors import ConfigError
from hasten.estimate.machines import of_size, recorded, this_machine
from hasten.hardware.memory import GIB, reserve_of

PROBES = Path(__file__).parents[1] / "hardware" / "probes"
SPARK = PROBES / "spark-page-cache.json"


def changed(tmp_path, device=None, files=None):
    """The Spark's record, with other facts of its device (False: none) and other files."""
    values = json.loads(SPARK.read_text(encoding="utf-8"))
    values["torch"]["devices"] = [] if device is False else [values["torch"]["devices"][0] | (device or {})]
    values["files"] |= {name: {"text": text} for name, text in (files or {}).items()}
    file = tmp_path / "machine.json"
    file.write_text(json.dumps(values), encoding="utf-8")
    return file


def test_a_recorded_spark():
    found = recorded(SPARK)
    assert found.hardware.name == "NVIDIA GB10" and found.hardware.unified_memory and found.hardware.bf16
    assert found.hardware.capability == (12, 1)
    assert found.budget.bytes == 115 * GIB - reserve_of("unified", 127601213 * 1024) and found.budget.advice


def test_limits_of_a_control_group(tmp_path):
    group = {
        "/proc/self/cgroup": "0::/\n",
        "/sys/fs/cgroup/memory.max": f"{32 * GIB}\n",
        "/sys/fs/cgroup/memory.current": f"{2 * GIB}\n",
    }
    assert recorded(changed(tmp_path, files=group)).budget.bytes == (30 - 4) * GIB
    slowed = group | {"/sys/fs/cgroup/memory.high": f"{16 * GIB}\n"}
    assert recorded(changed(tmp_path, files=slowed)).budget.bytes == (14 - 4) * GIB
    cpu = recorded(changed(tmp_path, device=False, files=group))
    assert (cpu.hardware.device, cpu.hardware.total_bytes) == ("cpu", 32 * GIB)
    assert cpu.budget.bytes == 30 * GIB - reserve_of("cpu", 32 * GIB)


def test_a_discrete_card(tmp_path):
    device = {"name": "Card", "major": 8, "minor": 9, "integrated": False, "free_bytes": 23 * GIB}
    found = recorded(changed(tmp_path, device, {"/sys/fs/cgroup/memory.max": "5\n", "/proc/meminfo": ""}))
    assert found.budget.bytes == 23 * GIB and found.hardware.capability == (8, 9)


@pytest.mark.parametrize(
    ("device", "files", "what"),
    [
        (None, {"/proc/meminfo": "x"}, "no text of /proc/meminfo"),
        (False, {"/proc/meminfo": ""}, "no text of /proc/meminfo"),
        ({"integrated": False, "free_bytes": None}, {}, "CUDA did not tell what its device has free"),
        ({"total_bytes": "all"}, {}, "'all'"),
    ],
)
def test_no_record(device, files, what, tmp_path):
    with pytest.raises(ConfigError, match=what) as caught:
        recorded(changed(tmp_path, device, files))
    assert "hasten doctor --record" in str(caught.value) and "machine.json" in caught.value.subject


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        recorded(tmp_path / "none.json")


def test_sizes():
    assert of_size("24GB").budget.bytes == 24 * 10**9 and of_size("24 GiB").budget.bytes == 24 * GIB
    assert of_size("1.5g").hardware.total_bytes == 1_500_000_000
    for wrong in ("", "GB", "0", "-3GB", "24 apples"):
        with pytest.raises(ConfigError, match="--memory.*such as 24GB"):
            of_size(wrong)


def test_this_machine_has_a_budget():
    found = this_machine()
    assert 0 <= found.budget.bytes <= found.hardware.total_bytes


def test_a_size_has_a_unit():
    for wrong in ("24", "9" * 400 + "TB"):
        with pytest.raises(ConfigError, match="--memory.*such as 24GB"):
            of_size(wrong)
