"""Machines from records and sizes."""

import json
from pathlib import Path

import pytest

from hasten.errors import ConfigError
from hasten.estimate.machines import of_size, recorded, this_machine
from hasten.hardware.memory import GIB, reserve_of

SPARK = Path(__file__).parent / "machines" / "dgx-spark.json"


def write(tmp_path, values):
    file = tmp_path / "machine.json"
    file.write_text(values if isinstance(values, str) else json.dumps(values), encoding="utf-8")
    return file


def test_a_recorded_spark():
    found = recorded(SPARK)
    assert found.hardware.name == "NVIDIA GB10" and found.hardware.unified_memory and found.hardware.bf16
    assert found.hardware.capability == (12, 1)
    assert found.budget.bytes == 115 * GIB - reserve_of("unified", 127600236 * 1024) and found.budget.advice


def test_what_hasten_doctor_records(tmp_path):
    short = json.loads(SPARK.read_text(encoding="utf-8"))
    device = {**short["device"], "major": 12, "minor": 1}
    del device["capability"]
    files = {"/proc/meminfo": {"text": short["meminfo"], "failure": ""}}
    values = {"format": 1, "machine": "aarch64", "files": files, "torch": {"devices": [device]}}
    assert recorded(write(tmp_path, values)) == recorded(SPARK)
    files["/proc/self/cgroup"] = {"text": "0::/\n"}
    files["/sys/fs/cgroup/memory.max"] = {"text": f"{32 * GIB}\n"}
    files["/sys/fs/cgroup/memory.current"] = {"text": f"{2 * GIB}\n"}
    assert recorded(write(tmp_path, values)).budget.bytes == 30 * GIB
    values["torch"] = {"devices": []}
    cpu = recorded(write(tmp_path, values))
    assert (cpu.hardware.device, cpu.hardware.total_bytes) == ("cpu", 32 * GIB)
    assert cpu.budget.bytes == 30 * GIB - reserve_of("cpu", 32 * GIB)


def test_a_discrete_card(tmp_path):
    device = {"name": "Card", "capability": "8.9", "integrated": False, "total_bytes": 24 * GIB, "free_bytes": 23 * GIB}
    found = recorded(write(tmp_path, {"device": device, "cgroup": {"limit_bytes": GIB}, "meminfo": ""}))
    assert found.budget.bytes == 23 * GIB and found.hardware.capability == (8, 9)


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ("{", "no JSON"),
        ("[]", "no JSON object"),
        ({}, "no text of /proc/meminfo"),
        ({"device": 3}, "its device is no object"),
        ({"device": {"total_bytes": GIB}}, "no free_bytes"),
        ({"device": {"total_bytes": -1, "free_bytes": 1}}, "total_bytes of its device is -1"),
        ({"device": {"integrated": True, "total_bytes": GIB}}, "no text of /proc/meminfo"),
        ({"meminfo": "MemTotal: 5 kB", "cgroup": {"limit_bytes": "x"}}, "its cgroup has no figures"),
    ],
)
def test_no_record(values, what, tmp_path):
    with pytest.raises(ConfigError, match=what) as caught:
        recorded(write(tmp_path, values))
    assert "hasten doctor --record" in caught.value.rule and "machine.json" in caught.value.subject


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
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
