"""Which assembler Triton takes, which would do, and why a kernel failed."""

import dataclasses

import pytest

from hasten.hardware.checks.triton import better_assembler, triton_findings, used_assembler, why_it_failed
from hasten.hardware.evidence import DeviceFacts, Evidence, Reading, TorchFacts, TritonFacts

SPARK = (12, 1)


def says(release):
    return Reading(f"Cuda compilation tools, release {release}, V{release}.0\n")


def machine(kernel=None, bundled=None, ptxas=None, **environment):
    device = DeviceFacts(name="NVIDIA GB10", major=12, minor=1, total_bytes=1, integrated=True)
    return Evidence(
        torch=TorchFacts(version="2.11", cuda="13.0", available=True, devices=(device,)),
        triton=TritonFacts(version="3.5.0", bundled=bundled or {"ptxas": says("12.8")}, kernel=kernel),
        ptxas=ptxas or {},
        environment=environment,
    )


def test_the_assembler_that_is_used():
    old, new = says("12.8"), says("12.9")
    assert used_assembler(machine(bundled={"ptxas": old}), SPARK) == ("TRITON_PTXAS_PATH", old)
    both = machine(bundled={"ptxas": old, "ptxas-blackwell": new})
    assert used_assembler(both, SPARK) == ("TRITON_PTXAS_BLACKWELL_PATH", new)
    assert used_assembler(both, (8, 9)) == ("TRITON_PTXAS_PATH", old)
    chosen = machine(ptxas={"/opt/ptxas": new}, TRITON_PTXAS_PATH="/opt/ptxas")
    assert used_assembler(chosen, SPARK) == ("TRITON_PTXAS_PATH", new)
    assert used_assembler(machine(TRITON_PTXAS_PATH="/elsewhere/ptxas"), SPARK) == ("TRITON_PTXAS_PATH", None)


def test_a_better_one():
    toolkits = {"/usr/local/cuda-12.4/bin/ptxas": says("12.4"), "/usr/local/cuda-13.0/bin/ptxas": says("13.0")}
    assert better_assembler(machine(ptxas=toolkits), SPARK) == "/usr/local/cuda-13.0/bin/ptxas"
    stays = {**toolkits, "/usr/local/cuda/bin/ptxas": says("13.0")}
    assert better_assembler(machine(ptxas=stays), SPARK) == "/usr/local/cuda/bin/ptxas"
    assert better_assembler(machine(ptxas={"/x": says("12.8"), "/y": Reading("", "exit code 1")}), SPARK) is None


def test_an_old_assembler_is_found_without_a_kernel():
    (finding,) = triton_findings(machine())
    assert (finding.state, finding.subject) == ("fault", "Triton's ptxas") and "sm_121" in finding.found
    (fine,) = triton_findings(machine(bundled={"ptxas": says("12.9")}))
    assert fine.state == "skipped"


def test_a_kernel_that_ran_proves_the_assembler():
    (finding,) = triton_findings(machine(Reading("equal\n")))
    assert finding.state == "ok"


@pytest.mark.parametrize("text", ["not equal", "", "unequal", "equal?"])
def test_other_numbers_are_a_fault(text):
    assert triton_findings(machine(Reading(text)))[-1].state == "fault"


def test_on_a_cpu_nothing_is_wanted():
    (finding,) = triton_findings(dataclasses.replace(machine(), torch=TorchFacts(version="2.13")))
    assert finding.state == "skipped"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("RuntimeError: Failed to find C compiler. Please specify via CC", "there is no C compiler"),
        ("fatal error: Python.h: No such file or directory", "Python.h is missing"),
        ("AssertionError: libcuda.so cannot found!", "libcuda.so is not found"),
        ("RuntimeError: CUDA error: no kernel image is available", "torch has no code"),
        ("Traceback\n  x\nOddError: what\n", "OddError: what"),
        ("", "no text"),
    ],
)
def test_why_it_failed(text, why):
    assert why in why_it_failed(text)[0]
