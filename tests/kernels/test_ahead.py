"""Every kernel compiles for chips that are not here, and fits their shared memory.

DGX Spark's chip (12.1) and GeForce's (12.0) have 99 KiB of it for a program, data-centre chips 227: what was chosen for
an H100 may not start there. Triton compiles without a GPU, so this is known before anybody tries.
"""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hasten.hardware.probe import Hardware
from hasten.plan import require_fp8

SRC = Path(__file__).parents[2] / "src" / "hasten"
SCRIPT = Path(__file__).with_name("ahead_script.py")
SHARED = {120: 99 << 10, 121: 99 << 10}
"""Bytes of shared memory that a program may have: CUDA's table of compute capabilities. H100s run the other tests."""


def kernels_in_source() -> set[str]:
    files = [*SRC.glob("kernels/*/triton.py"), SRC / "kernels" / "trial.py"]
    functions = [node for path in files for node in ast.walk(ast.parse(path.read_text("utf-8")))]
    return {node.name for node in functions if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel")}


def compiled_for(chips: list[int], cache: Path) -> list[dict]:
    # Triton is imported without its interpreter, which these tests' own process has turned on.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": str(SRC.parent)}
    command = [sys.executable, str(SCRIPT), *map(str, chips)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_every_kernel_compiles_and_fits(tmp_path):
    """Every launch on a Spark's chip, of each kernel the largest on GeForce's: the two differ in a number alone."""
    pytest.importorskip("triton", reason="it is what compiles")
    launches = compiled_for([121, 120], tmp_path)
    for chip in SHARED:
        assert {launch["kernel"] for launch in launches if launch["chip"] == chip} == kernels_in_source()
    assert all(launch["binary"] > 0 for launch in launches)
    too_large = [launch for launch in launches if launch["shared"] > SHARED[launch["chip"]]]
    assert not too_large


@pytest.mark.parametrize("element", [2, 4])
@pytest.mark.parametrize("inputs", [2, 3])
def test_rows_are_loaded_ahead_only_where_they_fit(element, inputs, monkeypatch):
    pytest.importorskip("triton", reason="launchers import it")
    from hasten.kernels.column_sums import triton as column_sums

    like = torch.empty(1, dtype=torch.bfloat16 if element == 2 else torch.float32)
    for shared in set(SHARED.values()):
        monkeypatch.setattr(column_sums, "_device", lambda device, shared=shared: (48, shared))
        for block in (128, 1024, 4096, 8192, 16384, 32768):
            own = column_sums.share(4096, block, like, inputs)
            assert own.stages * inputs * own.per_program * block * element < shared or own.stages == 1


def test_nothing_is_asked_of_a_chip_that_only_data_centres_have():
    """No tensor memory, no clusters, no tensor descriptors, no warps of special kinds: 12.1 has not all of them."""
    asked = re.compile(r"tcgen05|sm_?100|tensor_descriptor|warp_speciali[sz]e|num_ctas|cluster", re.IGNORECASE)
    files = [*(SRC / "kernels").rglob("*.py"), *(SRC / "blocks").rglob("*.py")]
    assert [path.name for path in files if asked.search(path.read_text("utf-8"))] == []


def test_a_spark_has_8_bit_products():
    spark = Hardware(device="cuda:0", name="NVIDIA GB10", total_bytes=1, cores=20, bf16=True, capability=(12, 1))
    require_fp8(spark, "bfloat16", "model.compute")
