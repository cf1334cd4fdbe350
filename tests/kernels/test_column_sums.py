"""Partial sums added up, and how programs share rows."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed; its kernels are tested where it is")


@pytest.mark.parametrize(("programs", "width"), [(1, 1), (132, 100), (33, 64), (0, 5)])
def test_sums_of_columns(device, programs, width):
    from hasten.kernels.column_sums.triton import column_sums

    partial = torch.randn(programs, width, device=device)
    torch.testing.assert_close(column_sums(partial), partial.sum(0))


@pytest.mark.parametrize(
    ("memory", "dtype", "stages"),
    [(2**17, torch.bfloat16, 3), (2**17, torch.float32, 1), (99 * 1024, torch.bfloat16, 3), (2**16, torch.bfloat16, 1)],
)
def test_rows_are_loaded_ahead_where_memory_allows(monkeypatch, memory, dtype, stages):
    from hasten.kernels.column_sums import triton as column_sums

    monkeypatch.setattr(column_sums, "_device", lambda device: (132, memory))
    wide = column_sums.share(8192, 4096, torch.empty(1, dtype=dtype), inputs=2)
    assert (wide.per_program, wide.programs, wide.warps, wide.stages) == (2, 132, 8, stages)
    few = column_sums.share(3, 64, torch.empty(1, dtype=dtype), inputs=2)
    assert (few.per_program, few.programs, few.warps) == (4, 1, 4)  # no more rows than there are
