"""What the machine is: pure parsers on text, and a probe that works on any machine, with or without a GPU."""

import json
import mmap
import os
from types import SimpleNamespace

import pytest

from hasten.hardware import probe as module
from hasten.hardware.memory import GIB, Cgroup, Meminfo, reserve_of
from hasten.hardware.probe import (
    Hardware,
    cpu_name,
    free_bytes,
    is_bf16_supported,
    memory_budget,
    peak_bytes,
    probe,
    shares_memory,
    usable_cores,
)

INTEL = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel\t\t: 143\nmodel name\t: Intel(R) Xeon(R) CPU: 8488C\n"
ARM = "processor\t: 0\nBogoMIPS\t: 2000.00\nCPU implementer\t: 0x41\nCPU part\t: 0xd87\n"


def fake_cuda(monkeypatch, **properties):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(**properties))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 12345)


def without_cuda(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_cpu_name():
    assert cpu_name(INTEL) == "Intel(R) Xeon(R) CPU: 8488C"
    assert cpu_name(ARM) == ""
    assert cpu_name("") == ""


def test_a_machine_without_a_gpu(monkeypatch):
    without_cuda(monkeypatch)
    monkeypatch.setattr(module, "_read_cpuinfo", lambda: INTEL)
    hardware = probe()
    assert (hardware.device, hardware.is_cuda, hardware.bf16, hardware.capability) == ("cpu", False, False, None)
    assert hardware.name == "Intel(R) Xeon(R) CPU: 8488C"
    assert hardware.total_bytes > 1 << 28
    monkeypatch.setattr(module, "_read_cpuinfo", lambda: "")
    assert probe().name, "some name even where the kernel tells none"


@pytest.mark.parametrize(("major", "minor", "bf16"), [(12, 1, True), (8, 0, True), (7, 5, False)])
def test_a_cuda_device(monkeypatch, major, minor, bf16):
    fake_cuda(monkeypatch, name="NVIDIA GB10", total_memory=121 << 30, major=major, minor=minor, is_integrated=1)
    hardware = probe()
    assert (hardware.device, hardware.name, hardware.total_bytes) == ("cuda:0", "NVIDIA GB10", 121 << 30)
    assert (hardware.is_cuda, hardware.bf16, hardware.capability) == (True, bf16, (major, minor))
    assert hardware.unified_memory is True
    assert peak_bytes(hardware) == 12345
    assert is_bf16_supported() is bf16


def test_a_torch_that_does_not_tell_about_unified_memory(monkeypatch):
    fake_cuda(monkeypatch, name="Some GPU", total_memory=1, major=9, minor=0)
    assert probe().unified_memory is False


def test_bfloat16_trains_on_every_cpu(monkeypatch):
    without_cuda(monkeypatch)
    assert is_bf16_supported() is True


def test_cores_are_those_of_this_process(monkeypatch):
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
    monkeypatch.setattr(module, "read_quota", lambda: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 7}, raising=False)
    assert usable_cores() == 3
    for quota, cores in ((2, 2), (8, 3)):
        monkeypatch.setattr(module, "read_quota", lambda quota=quota: quota)
        assert usable_cores() == cores
    monkeypatch.setattr(module, "read_quota", lambda: None)
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores() == (os.cpu_count() or 1)


def test_peak_memory_of_a_cpu_job_is_in_bytes_and_grows():
    cpu = Hardware(device="cpu", name="x", total_bytes=1, cores=1, bf16=False)
    import psutil

    before = peak_bytes(cpu)
    # In bytes, not in KiB or pages: at least what is resident now. Linux adds up three counters (file, anonymous,
    # shared), each known to within a batch of pages on each core: 32 of them, or twice the cores.
    cores = os.cpu_count() or 1
    uncounted = 3 * cores * max(32, 2 * cores) * mmap.PAGESIZE
    assert before >= psutil.Process().memory_info().rss - uncounted
    block = b"x" * (before + (64 << 20) - psutil.Process().memory_info().rss)
    assert peak_bytes(cpu) > before
    del block


def test_the_record_is_json():
    record = probe().as_dict()
    assert json.loads(json.dumps(record))["device"] == record["device"]


SPARK = Hardware(device="cuda:0", name="NVIDIA GB10", total_bytes=121 << 30, cores=20, bf16=True, unified_memory=True)


def fake_memory(monkeypatch, free=41 * GIB, **changes):
    import torch

    found = Meminfo(**{"total": 121 * GIB, "free": 41 * GIB, "available": 115 * GIB, **changes})
    monkeypatch.setattr(module, "read_meminfo", lambda: found)
    monkeypatch.setattr(module, "read_cgroup", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 5 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 3 * GIB)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 121 * GIB))


def test_one_rule_per_kind_of_machine(monkeypatch):
    fake_memory(monkeypatch)
    assert free_bytes(SPARK) == 115 * GIB - reserve_of("unified", 121 * GIB) + 2 * GIB
    assert memory_budget(SPARK).advice is not None
    discrete = Hardware(device="cuda:0", name="Card", total_bytes=80 << 30, cores=1, bf16=True)
    assert free_bytes(discrete) == 43 * GIB
    cpu = Hardware(device="cpu", name="CPU", total_bytes=121 << 30, cores=1, bf16=False)
    assert free_bytes(cpu) == 115 * GIB - reserve_of("cpu", 121 * GIB)


def test_a_figure_of_cuda_that_is_not_supported(monkeypatch):
    import torch

    fake_memory(monkeypatch)

    def refuse(device):
        raise RuntimeError("CUDA error: operation not supported")

    monkeypatch.setattr(torch.cuda, "mem_get_info", refuse)
    assert "CUDA gives no figure" in memory_budget(SPARK).rule


def test_a_limited_cpu_has_what_its_group_has(monkeypatch):
    without_cuda(monkeypatch)
    monkeypatch.setattr(module, "read_cgroup", lambda: Cgroup(limit=2**30, room=2**30))
    assert probe().total_bytes == 2**30
    monkeypatch.setattr(module, "read_cgroup", lambda: None)
    assert probe().total_bytes > 2**30


def test_which_devices_share_their_memory(monkeypatch):
    import torch

    assert not shares_memory(torch.device("cpu"))
    fake_cuda(monkeypatch, is_integrated=1)
    assert shares_memory(torch.device("cuda:0"))
    fake_cuda(monkeypatch, is_integrated=0)
    assert not shares_memory(torch.device("cuda:0"))
