"""Verdicts on recorded machines. Each record has its lines beside it; what must be found is said here once more."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hasten.hardware.doctor import examine, verdict
from hasten.hardware.evidence import Evidence, Reading, load_evidence
from hasten.hardware.finding import STATES, Finding

PROBES = Path(__file__).parent / "probes"
NAMES = sorted(path.stem for path in PROBES.glob("*.json"))
REQUIREMENTS = (
    "torch>=2.10", "transformers<6,>=5.0", "peft>=0.18", "accelerate>=1.10", "datasets>=4.3", "safetensors>=0.5",
    "tokenizers>=0.21", "gguf>=0.17", 'trl>=0.26; extra == "trl"', 'bitsandbytes>=0.46; extra == "bnb"',
)  # fmt: skip

# What nobody may lose: the state, the subject, what the line says, what the remedy says.
EXPECTED = {
    "container-without-gpu": [("warning", "torch and the GPU", "without a GPU", "docker run --gpus all")],
    "cpu": [],
    "h100": [],
    "h100-cgroup-1": [
        ("note", "memory limit", "32.0 GiB, 2.0 GiB of it free", None),
        ("warning", "memory", "2.0 GiB available to this process", None),
        ("warning", "/dev/shm", "64 MiB", "--ipc=host"),
        ("note", "memlock limit", "64 KiB", "--ulimit memlock=-1"),
    ],
    "h100-cgroup-2": [("note", "memory limit", "64.0 GiB, 34.0 GiB of it free", None)],
    "h100-driver-not-loaded": [("fault", "driver", "its module is not loaded", "sudo modprobe nvidia")],
    "h100-driver-updated": [
        ("fault", "driver", "different versions", "sudo reboot"),
        ("fault", "torch and the GPU", "see driver", None),
    ],
    "h100-hidden": [
        ("warning", "torch and the GPU", "hides every device", "unset CUDA_VISIBLE_DEVICES"),
        ("note", "GPU memory", "79.6 GiB", None),
    ],
    "h100-hidden-minus-one": [
        ("warning", "torch and the GPU", "hides every device", "unset CUDA_VISIBLE_DEVICES"),
        ("note", "GPU memory", "79.6 GiB", None),
    ],
    "h100-mig": [
        ("fault", "MIG", "torch sees no instance", "nvidia-smi -L"),
        ("fault", "torch and the GPU", "see MIG", None),
    ],
    "h100-mig-instance": [("note", "MIG", "a process uses one of them", "CUDA_VISIBLE_DEVICES=MIG-")],
    "h100-recorded": [],
    "h100-new-transformers": [("note", "packages", "transformers 5.31.0 (tested up to 5.24)", None)],
    "h100-no-compiler": [
        ("fault", "Triton", "there is no C compiler", None),
        ("fault", "C compiler", "cannot build its launcher", "sudo apt install build-essential"),
    ],
    "h100-no-python-h": [
        ("fault", "Triton", "Python.h is missing", None),
        ("fault", "C compiler", "Python.h is missing", "sudo apt install python3.12-dev"),
    ],
    "rtx-5090-old-torch": [
        ("fault", "torch and the GPU", "was not compiled for NVIDIA GeForce RTX 5090", "/whl/cu130"),
        ("fault", "Triton", "torch has no code for this card", None),
        ("note", "CUDA toolkit", "does no harm", None),
    ],
    "rtx-disk-full": [
        ("fault", "disk (cache)", "0.2 GiB free: full", "du -sh"),
        ("warning", "disk (working folder)", "11.0 GiB free", "du -sh"),
        ("note", "CUDA toolkit", "12.0 beside torch's own 12.8", None),
    ],
    "rtx-driver-too-old": [
        ("fault", "driver", "570.133.07, runs CUDA up to 12.8: too old for this torch, which needs CUDA 13.0", "cu126"),
        ("fault", "torch and the GPU", "cannot start CUDA 13.0 on driver 570.133.07", None),
        ("note", "CUDA toolkit", "does no harm", None),
        ("note", "GPU memory", "8.0 GiB", None),
    ],
    "rtx-laptop": [("note", "CUDA toolkit", "12.0 beside torch's own 12.8", None)],
    "rtx-managed-python": [
        ("warning", "Python", "pip refuses to install", "python3 -m venv"),
        ("note", "CUDA toolkit", "12.0 beside torch's own 12.8", None),
    ],
    "rtx-python-3.10": [
        ("fault", "Python", "3.10.12: hasten needs 3.11 or later", "python3.11 -m venv"),
        ("note", "CUDA toolkit", "12.0 beside torch's own 12.8", None),
    ],
    "rtx-two-toolkits": [("note", "CUDA toolkit", "11.8, 12.4 beside torch's own 12.8: does no harm", None)],
    "spark": [("note", "swap", "16.0 GiB", "swapoff")],
    "spark-bitsandbytes-old": [
        ("fault", "bitsandbytes", "no library for CUDA 13.0", "pip install --upgrade bitsandbytes"),
        ("note", "swap", "16.0 GiB", "swapoff"),
    ],
    "spark-container": [("note", "swap", "16.0 GiB", "swapoff")],
    "spark-old-nvml": [("note", "swap", "16.0 GiB", "swapoff")],
    "spark-page-cache": [
        (
            "note",
            "page cache",
            "cached files hide 74.0 GiB from CUDA's figure",
            "sudo tee /proc/sys/vm/drop_caches",
        ),
        ("note", "swap", "16.0 GiB", "swapoff"),
    ],
    "spark-ptxas-blackwell-old": [
        (
            "fault",
            "Triton's ptxas",
            "(CUDA 12.8) does not know this card (sm_121a)",
            "export TRITON_PTXAS_BLACKWELL_PATH=/usr/local/cuda/bin/ptxas",
        ),
        ("note", "swap", "16.0 GiB", "swapoff"),
    ],
    "spark-ptxas-old": [
        (
            "fault",
            "Triton's ptxas",
            "(CUDA 12.8) does not know this card (sm_121a)",
            "export TRITON_PTXAS_PATH=/usr/local/cuda/bin/ptxas",
        ),
        ("note", "swap", "16.0 GiB", "swapoff"),
    ],
    "spark-ptxas-old-no-toolkit": [
        ("fault", "Triton's ptxas", "then set TRITON_PTXAS_PATH to its path", "sudo apt install cuda-nvcc-13-0"),
        ("note", "swap", "16.0 GiB", "swapoff"),
    ],
    "spark-swapping": [
        ("warning", "memory", "0.0 GiB to plan with", None),
        ("warning", "swap", "12.0 GiB of 16.0 GiB in use", "free -h"),
    ],
    "spark-torch-cpu": [
        ("fault", "torch", "is a CPU build beside NVIDIA GB10", "pip install --force-reinstall torch"),
        ("warning", "Triton", "not installed", "pip install triton"),
        ("note", "swap", "16.0 GiB", "swapoff"),
    ],
    "spark-warned": [("note", "swap", "16.0 GiB", "swapoff")],
    "wsl": [],
    "wsl-old-windows-driver": [
        ("fault", "driver", "The driver is Windows'", "cu126"),
        ("fault", "torch and the GPU", "cannot start CUDA 13.0 on driver 546.80", None),
        ("note", "GPU memory", "8.0 GiB", None),
    ],
}


def probe(name: str) -> Evidence:
    return load_evidence(PROBES / f"{name}.json")


def lines_of(findings) -> str:
    lines = []
    for finding in findings:
        lines.append(f"{finding.state}: {finding.subject}: {finding.found}")
        lines += [f"    $ {command}" for command in (finding.remedy or "").splitlines()]
    return "\n".join(lines) + "\n"


def line(name: str, subject: str) -> Finding:
    return next(finding for finding in examine(probe(name), REQUIREMENTS) if finding.subject == subject)


def test_every_record_has_its_expectation():
    assert sorted(EXPECTED) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_verdict_lines(name):
    """Word by word as in the file beside the record; one that is meant to change is changed there by hand."""
    findings = examine(probe(name), REQUIREMENTS)
    assert lines_of(findings) == (PROBES / f"{name}.txt").read_text("utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_what_must_be_found_and_nothing_else(name):
    found = [finding for finding in examine(probe(name), REQUIREMENTS) if finding.state not in ("ok", "skipped")]
    assert {(each.state, each.subject) for each in found} == {expected[:2] for expected in EXPECTED[name]}
    for state, subject, says, does in EXPECTED[name]:
        (finding,) = (each for each in found if (each.state, each.subject) == (state, subject))
        assert says in finding.found
        assert does is None or does in (finding.remedy or "")


@pytest.mark.parametrize("name", NAMES)
def test_a_record_says_where_it_comes_from_and_names_nobody(name):
    text = (PROBES / f"{name}.json").read_text("utf-8")
    values = json.loads(text)
    assert values["source"] and "Spark" not in values["source"] or "No machine of this kind" in values["source"]
    assert "/home/" not in text and "/Users/" not in text


def test_a_healthy_spark():
    assert "sm_120" in line("spark", "torch and the GPU").found
    assert "memory shared with the CPU" in line("spark", "GPU").found
    memory = line("spark-page-cache", "memory").found
    assert "107.4 GiB to plan with: shared memory: MemAvailable 115.0 GiB less a reserve of 7.6 GiB" in memory
    assert "CUDA says 41.0 GiB free" in memory
    assert "warning about it can be ignored" in line("spark-warned", "torch and the GPU").found


def test_a_discrete_card_goes_by_its_own_figure():
    assert "78.6 GiB free by CUDA's figure, which counts here" in line("h100", "GPU memory").found


def test_where_it_runs():
    assert "DGX OS, no container" in line("spark", "machine").found
    assert "in NVIDIA's PyTorch container 25.11" in line("spark-container", "machine").found
    assert "WSL 2" in line("wsl", "machine").found


def test_a_torch_from_nvidia_is_never_replaced():
    machine = probe("spark-container")
    broken = dataclasses.replace(machine, torch=dataclasses.replace(machine.torch, archs=("sm_90",)))
    finding = next(each for each in examine(broken, REQUIREMENTS) if each.subject == "torch and the GPU")
    assert (finding.state, finding.remedy) == ("fault", None)
    assert "do not install another over it" in finding.found


def test_an_interpreter_that_the_system_manages_gets_a_virtual_environment_first():
    machine = probe("spark-torch-cpu")
    outside = dataclasses.replace(machine, python=dataclasses.replace(machine.python, virtual=False))
    finding = next(each for each in examine(outside, REQUIREMENTS) if each.subject == "torch")
    assert (finding.remedy or "").splitlines() == [
        "python3 -m venv ~/hasten && . ~/hasten/bin/activate",
        "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu130",
    ]


def test_the_hub_is_judged_only_where_it_was_asked():
    def said(hub, **environment):
        machine = dataclasses.replace(probe("cpu"), hub=hub, environment=environment)
        finding = next(each for each in examine(machine, REQUIREMENTS) if each.subject == "hub")
        return finding.state, finding.found

    assert said(None)[0] == "skipped"
    assert said(Reading("2.3 kB\n662 bytes\n")) == ("ok", "answers")
    assert said(Reading("Traceback\nNameResolutionError: no", "exit code 1"))[0] == "warning"
    assert said(Reading("", "no answer within 8 s"))[1].startswith("does not answer (no answer within 8 s)")
    assert said(Reading("OfflineModeIsEnabled", "exit code 1"), HF_HUB_OFFLINE="1")[0] == "note"
    assert said(Reading("<html>a portal</html>"))[0] == "warning"


def test_nothing_is_known_of_an_empty_record():
    findings = examine(Evidence(), REQUIREMENTS)
    assert not [finding for finding in findings if finding.state == "ok"]
    assert {finding.state for finding in findings} <= set(STATES)


def test_the_last_line():
    ok, warning, fault = (Finding(state, "x", "y") for state in ("ok", "warning", "fault"))
    assert verdict([ok]) == "Nothing is wrong here."
    assert verdict([ok, fault, fault]).startswith("2 faults; ")
    assert verdict([warning, fault]).startswith("1 fault and 1 warning; ")
    assert fault.as_dict() == {"state": "fault", "subject": "x", "found": "y", "remedy": None}


def mangled(text):
    """A text as it may also arrive: cut, with other line ends, in another language, or no text at all."""
    cut = st.integers(0, max(len(text), 1)).map(lambda end: text[:end])
    other = st.sampled_from([
        text.replace("\n", "\r\n"),
        text.replace("Version", "Versión").replace("release", "Ausgabe").replace("MemTotal", "Gesamt"),
        text.replace(".", ","),
        text.replace(", ", ";"),
        text[::-1],
        text.swapcase(),
        "",
    ])  # fmt: skip
    return st.one_of(cut, other, st.text(max_size=300), st.binary(max_size=300).map(lambda b: b.decode("latin-1")))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_mangled_text_is_never_an_exception(data):
    machine = probe(data.draw(st.sampled_from(NAMES)))

    def bad(readings):
        return {
            name: Reading(data.draw(mangled(reading.text)), data.draw(st.sampled_from([reading.failure, "", "x"])))
            if data.draw(st.booleans())
            else reading
            for name, reading in readings.items()
        }

    triton = dataclasses.replace(machine.triton, bundled=bad(machine.triton.bundled))
    if machine.triton.kernel:
        triton = dataclasses.replace(triton, kernel=Reading(data.draw(mangled(machine.triton.kernel.text))))
    machine = dataclasses.replace(
        machine,
        commands=bad(machine.commands),
        files=bad(machine.files),
        ptxas=bad(machine.ptxas),
        triton=triton,
        packages={name: data.draw(mangled(version)) for name, version in machine.packages.items()},
        environment={name: data.draw(mangled(value)) for name, value in machine.environment.items()},
        torch=dataclasses.replace(machine.torch, archs=tuple(data.draw(mangled(arch)) for arch in machine.torch.archs)),
    )
    for finding in examine(machine, REQUIREMENTS):
        assert finding.state in STATES and finding.found


NONSENSE = st.one_of(
    st.binary(max_size=400).map(lambda content: content.decode("latin-1")),
    st.text(max_size=400),
    st.lists(st.sampled_from(["Driver", "Version:", "|", "+---+", "N/A", "release", "kB", "\r\n", "gcc"])).map(
        " ".join
    ),
)


@settings(max_examples=80, deadline=None)
@given(NONSENSE, NONSENSE, NONSENSE)
def test_nonsense_is_never_found_to_be_fine(first, second, third):
    machine = probe("spark")
    nonsense = dataclasses.replace(
        machine,
        commands={"nvidia-smi": Reading(first), "gpus": Reading(second), "nvcc": Reading(first), "cc": Reading(third)},
        files={path: Reading(third) for path in machine.files},
        triton=dataclasses.replace(machine.triton, kernel=Reading(second)),
        bitsandbytes=dataclasses.replace(machine.bitsandbytes, works=Reading(third)),
        packages={name: "" if name == "numpy" else "x" + first for name in machine.packages},
    )
    fine = {finding.subject for finding in examine(nonsense, REQUIREMENTS) if finding.state == "ok"}
    assert fine <= {
        "machine",  # its processor was told by Python
        "disk (cache)",
        "torch",
        "torch and the GPU",
        "CUDA toolkit",  # there are others in the record
        "GPU memory",
        "Python",
    }
