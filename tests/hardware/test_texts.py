"""Parsers on true texts, and on what is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.hardware import texts

HEADER = """\
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI 580.126.09             Driver Version: 580.126.09     CUDA Version: 13.0     |
+-----------------------------------------+------------------------+----------------------+
"""
TABLE = "name, driver_version, memory.total [MiB], memory.free [MiB], compute_cap, mig.mode.current\n"
PTXAS = "ptxas: NVIDIA (R) Ptx optimizing assembler\nCuda compilation tools, release 12.9, V12.9.86\n"


def test_driver_in_header():
    assert texts.driver_in_header(HEADER) == ("580.126.09", (13, 0))
    assert texts.driver_in_header(HEADER.replace("\n", "\r\n")) == ("580.126.09", (13, 0))
    # What WSL prints where the driver is older than its tool.
    assert texts.driver_in_header("| NVIDIA-SMI 545.46  Driver Version: 546.80  CUDA Version: ERR! |") == (
        "546.80",
        None,
    )
    assert texts.driver_in_header("command not found") == ("", None)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.95.05  Release Build  (x@y)\n", "580.95.05"),
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  575.64.03  Thu Jul  3 18:23:41 UTC 2025\nGCC", "575.64.03"),
        ("GCC version:  gcc version 13.3.0 (Ubuntu)\n", ""),
        ("", ""),
    ],
)
def test_driver_of_kernel(text, version):
    assert texts.driver_of_kernel(text) == version


def test_gpus_in_table():
    (gb10,) = texts.gpus_in_table(TABLE + "NVIDIA GB10, 580.126.09, [N/A], [N/A], 12.1, [N/A]\n")
    assert (gb10.name, gb10.total_bytes, gb10.capability, gb10.mig) == ("NVIDIA GB10", None, (12, 1), False)
    (old,) = texts.gpus_in_table(TABLE + "NVIDIA GB10, 580.95.05, [Not Supported], [Not Supported], 12.1, [N/A]\n")
    assert old.total_bytes is None
    row = "NVIDIA H100 80GB HBM3, 580.105.08, 81559 MiB, 81081 MiB, 9.0, Enabled\r\n"
    first, second = texts.gpus_in_table("a warning\n" + TABLE + row + row)
    assert first == second and (first.driver, first.total_bytes, first.mig) == ("580.105.08", 81559 << 20, True)
    # Other columns, in another order, and a row that was cut off.
    (moved,) = texts.gpus_in_table("driver_version, name\n580.1, NVIDIA X\n580")
    assert (moved.name, moved.driver, moved.capability) == ("NVIDIA X", "580.1", None)
    assert texts.gpus_in_table("NVIDIA GB10, 580.126.09, [N/A], [N/A], 12.1, [N/A]") == ()
    assert texts.gpus_in_table("Failed to initialize NVML: Driver/library version mismatch") == ()


def test_release_of():
    assert texts.release_of(PTXAS) == (12, 9)
    assert texts.release_of("Cuda compilation tools, release 13.0, V13.0.88") == (13, 0)
    assert texts.release_of("ptxas: command not found") is None


def test_small_ones():
    assert texts.version_of("2.10.0a0+b558c986e8.nv25.11") == (2, 10, 0)
    assert texts.version_of("git") is None
    assert texts.shown((12, 9)) == "12.9" and texts.shown(None) == "?"
    assert texts.system_name('NAME="x"\nPRETTY_NAME="Ubuntu 24.04.3 LTS"\r\n') == "Ubuntu 24.04.3 LTS"
    assert texts.architecture_of("sm_121a") == ("sm", (12, 1), "a")
    assert texts.architecture_of("compute_90") == ("compute", (9, 0), "")
    assert texts.architecture_of("gfx942") is None
    assert texts.last_line("a\n  b \n\n") == "b" and texts.last_line("") == ""
    assert texts.last_line("x" * 999).endswith("...")


ANYTHING = st.one_of(st.text(), st.binary().map(lambda content: content.decode("latin-1")))


@given(ANYTHING, st.integers(0, 400), st.integers(0, 400))
def test_any_text_is_read(noise, start, end):
    for base in ("", HEADER + TABLE + "NVIDIA GB10, 580.126.09, [N/A], [N/A], 12.1, [N/A]\n" + PTXAS):
        text = base[:start] + noise + base[start:end]
        texts.driver_in_header(text)
        texts.driver_of_kernel(text)
        for gpu in texts.gpus_in_table(text):
            assert gpu.name
        texts.release_of(text)
        texts.system_name(text)
        texts.architecture_of(text)
        texts.version_of(text)
        texts.last_line(text)
