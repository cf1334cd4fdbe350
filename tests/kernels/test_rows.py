"""Rows as kernels take them."""

import pytest
import torch

from hasten.kernels.rows import copy_rows, rounds_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("width", "pitch", "start"), [(8, 12, 0), (8, 12, 4), (6, 12, 1), (7, 9, 2), (8, 9, 0), (0, 4, 0)]
)
def test_rows_are_copied_whatever_their_place(device, dtype, width, pitch, start):
    source = torch.randn(5, pitch, device=device).to(dtype)
    wide = torch.zeros(5, 2 * pitch, device=device, dtype=dtype)
    copy_rows(wide[:, start : start + width], source[:, :width])
    assert torch.equal(wide[:, start : start + width], source[:, :width])
    wide[:, start : start + width] = 0
    assert not wide.any()


def test_heads_of_rows_and_columns_apart():
    source, target = torch.randn(3, 2, 8).to(torch.bfloat16), torch.zeros(3, 24, dtype=torch.bfloat16)
    copy_rows(target[:, 4:20].unflatten(1, (2, 8)), source)
    assert torch.equal(target[:, 4:20].unflatten(1, (2, 8)), source)
    copy_rows(target[:, :16:2], source[:, 0])
    assert torch.equal(target[:, :16:2], source[:, 0])


@pytest.mark.parametrize(("rows", "rounds"), [(1, 1), (8, 1), (9, 2), (17, 4), (0, 1)])
def test_rounds_cover_all_rows(rows, rounds):
    assert rounds_of(rows, 2, 4) == rounds
