"""Which implementation runs, and what happens where Triton is there and cannot compile."""

import subprocess
from types import SimpleNamespace

import pytest
import torch

from hasten.errors import CapabilityError
from hasten.hardware.probe import Hardware
from hasten.kernels import choice
from hasten.plan import choose_kernels

triton = pytest.importorskip("triton", reason="its own errors are raised here")

from triton.runtime.errors import PTXASError  # noqa: E402

from hasten.kernels import trial  # noqa: E402

SPARK = Hardware(
    device="cuda:0", name="NVIDIA GB10", total_bytes=121 << 30, cores=20, bf16=True, capability=(12, 1),
    unified_memory=True,
)  # fmt: skip
ON_GPU = SimpleNamespace(is_cuda=True, dtype=torch.bfloat16, device="cuda:0")
UNKNOWN = (
    "Internal Triton PTX codegen error\n`ptxas` stderr:\n"
    "ptxas fatal   : Value 'sm_121a' is not defined for option 'gpu-name'\n\n"
    "Repro command: /venv/triton/backends/nvidia/bin/ptxas -lineinfo -v --gpu-name=sm_121a /tmp/a.ptx -o /tmp/a.o\n"
)
FAILURES = [
    (PTXASError(UNKNOWN), "bin/ptxas does not know sm_121a", "set TRITON_PTXAS_PATH to a newer ptxas"),
    (
        PTXASError(UNKNOWN.replace("bin/ptxas", "bin/ptxas-blackwell")),
        "bin/ptxas-blackwell does not know sm_121a",
        "set TRITON_PTXAS_BLACKWELL_PATH",
    ),
    (
        RuntimeError("Failed to find C compiler. Please specify via CC environment variable."),
        "there is no C compiler",
        "sudo apt install build-essential",
    ),
    (subprocess.CalledProcessError(1, ["/usr/bin/gcc", "x.c"]), "its C compiler failed", "Python.h may be missing"),
    (AssertionError("libcuda.so cannot found!"), "libcuda.so is not found", "hasten doctor"),
    (ImportError("cuda_utils.so: undefined symbol"), "undefined symbol", "hasten doctor"),
    (PermissionError(13, "Permission denied"), "Permission denied", "hasten doctor"),
]


@pytest.fixture(autouse=True)
def tried_anew():
    choice.triton_failure.cache_clear()
    yield
    choice.triton_failure.cache_clear()


@pytest.fixture
def kernel(monkeypatch):
    """Stands for the kernel's run; `kernel.outcome` is raised, or returned."""
    state = SimpleNamespace(outcome=True, runs=0)

    def run(device):
        assert device == "cuda"
        state.runs += 1
        print("what Triton prints")
        if isinstance(state.outcome, BaseException):
            raise state.outcome
        return state.outcome

    monkeypatch.setattr(trial, "trial", run)
    return state


def test_where_it_compiles_triton_runs_and_it_is_tried_once(kernel, capsys):
    assert [choice.choose("auto", ON_GPU) for _ in range(3)] == ["triton"] * 3
    assert choice.choose("triton", ON_GPU) == "triton"
    assert kernel.runs == 1 and not capsys.readouterr().out
    assert choose_kernels(SPARK, True, choice.triton_failure()).choice == "Triton"


@pytest.mark.parametrize(("outcome", "reason", "remedy"), FAILURES, ids=lambda value: type(value).__name__)
def test_where_it_does_not_torch_runs_and_the_header_says_why(kernel, outcome, reason, remedy):
    kernel.outcome = outcome
    assert choice.choose("auto", ON_GPU) == "torch"
    said = choose_kernels(SPARK, True, choice.triton_failure())
    assert (said.choice, said.fallback) == ("plain torch", True)
    assert reason in said.why and remedy in said.why and "\n" not in said.why and len(said.why) < 250
    with pytest.raises(CapabilityError) as raised:
        choice.choose("triton", ON_GPU)
    assert "Triton cannot run a kernel" in raised.value.value and "hasten doctor" in raised.value.remedy
    assert kernel.runs == 1


def test_wrong_numbers_are_a_failure(kernel):
    kernel.outcome = False
    assert choice.choose("auto", ON_GPU) == "torch"
    assert "other numbers than torch" in choose_kernels(SPARK, True, choice.triton_failure()).why


@pytest.mark.parametrize("outcome", [torch.OutOfMemoryError("full"), KeyboardInterrupt(), TypeError("a fault of ours")])
def test_what_says_nothing_of_triton_is_raised(kernel, outcome):
    kernel.outcome = outcome
    with pytest.raises(type(outcome)):
        choice.choose("auto", ON_GPU)


def test_a_triton_that_does_not_import(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "triton", None)
    assert choice.choose("auto", ON_GPU) == "torch"
    assert "ImportError" in choice.triton_failure() or "ModuleNotFoundError" in choice.triton_failure()


def test_on_a_cpu_nothing_is_tried(kernel):
    assert choice.choose("auto", torch.zeros(1)) == "torch"
    assert choice.choose("torch", ON_GPU) == "torch"
    assert choice.choose("auto", SimpleNamespace(is_cuda=True, dtype=torch.float64, device="cuda:0")) == "torch"
    assert kernel.runs == 0


@pytest.mark.gpu
def test_for_real():
    assert choice.triton_failure() == ""
