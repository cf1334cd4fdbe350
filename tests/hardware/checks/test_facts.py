"""Which binaries run on which card, what hides one, which command brings a torch."""

import dataclasses

import pytest

from hasten.hardware.checks.facts import container_of, driver_command, hidden, how_it_runs, torch_command
from hasten.hardware.evidence import Evidence, PythonFacts, Reading


@pytest.mark.parametrize(
    ("archs", "capability", "how"),
    [
        (("sm_90", "sm_120"), (12, 1), "binary"),
        (("sm_121",), (12, 1), "binary"),
        (("sm_121a",), (12, 1), "binary"),
        (("sm_120a",), (12, 1), ""),  # that chip alone
        (("sm_120f",), (12, 1), "binary"),  # its family
        (("sm_90", "compute_90"), (12, 1), "ptx"),
        (("compute_120",), (12, 1), "ptx"),
        (("compute_90a",), (12, 1), ""),
        (("compute_100f",), (12, 1), ""),
        (("sm_100",), (12, 1), ""),  # data-centre Blackwell is another major version
        (("sm_121",), (12, 0), ""),  # not backwards
        (("sm_80",), (8, 9), "binary"),
        (("sm_80", "sm_90"), (7, 5), ""),
        (("gfx942", "", "sm_x"), (9, 0), ""),
        ((), (9, 0), ""),
    ],
)
def test_how_it_runs(archs, capability, how):
    assert how_it_runs(archs, capability) == how


@pytest.mark.parametrize(
    ("value", "is_hidden"),
    [("", True), ("-1", True), ("NoDevFiles", True), ("-1,0", True), ("0", False), ("0,-1", False)],
)
def test_hidden(value, is_hidden):
    assert hidden(Evidence(environment={"CUDA_VISIBLE_DEVICES": value})) is is_hidden
    assert not hidden(Evidence())


@pytest.mark.parametrize(
    ("evidence", "name"),
    [
        (Evidence(present=("/.dockerenv",)), "Docker"),
        (Evidence(present=("/run/.containerenv",)), "Podman"),
        (Evidence(files={"/proc/self/cgroup": Reading("1:memory:/kubepods/x\n")}), "Kubernetes"),
        (Evidence(environment={"container": "lxc"}), "lxc"),
        (Evidence(), ""),
    ],
)
def test_container_of(evidence, name):
    assert name in container_of(evidence) and bool(name) is bool(container_of(evidence))


def gpu(cuda, capability):
    table = f"name, driver_version, compute_cap\nX, 1.2, {capability}\n"
    return Evidence(
        machine="x86_64",
        python=PythonFacts(virtual=True),
        commands={"nvidia-smi": Reading(f"Driver Version: 1.2 CUDA Version: {cuda}"), "gpus": Reading(table)},
    )


@pytest.mark.parametrize(
    ("cuda", "capability", "build"),
    [("13.0", "9.0", "cu130"), ("12.8", "8.9", "cu126"), ("12.8", "12.0", "cu128"), ("12.8", "12.1", "cu130")],
)
def test_torch_command(cuda, capability, build):
    evidence = gpu(cuda, capability)
    assert torch_command(evidence).endswith(f"/whl/{build}")
    assert torch_command(dataclasses.replace(evidence, machine="aarch64")).endswith("/whl/cu130")


def test_driver_command():
    ubuntu = {"/etc/os-release": Reading('PRETTY_NAME="Ubuntu 24.04"\n')}
    assert "nvidia-driver-580-open" in (driver_command(Evidence(files=ubuntu)) or "")
    assert "full-upgrade" in (driver_command(Evidence(files={**ubuntu, "/etc/dgx-release": Reading()})) or "")
    assert driver_command(Evidence(files=ubuntu, present=("/dev/dxg",))) is None
    assert driver_command(Evidence(files=ubuntu, present=("/.dockerenv",))) is None
    assert driver_command(Evidence()) is None
