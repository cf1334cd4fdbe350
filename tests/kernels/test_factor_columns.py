"""A factor's columns beside a weight; the kernels that write both are tested in test_nf4 and test_row_scaled."""

import pytest
import torch

from hasten.kernels.factor_columns.reference import write_factor


@pytest.mark.parametrize(("start", "rank", "widened"), [(0, 2, 2), (3, 2, 8), (6, 2, 8)])
def test_all_columns_beyond_the_weight_are_written(start, rank, widened):
    out, B = torch.full((3, 4 + widened), float("nan")), torch.randn(3, rank)  # noqa: N806
    write_factor(out, 4, B, start)
    assert out[:, :4].isnan().all()
    assert torch.equal(out[:, 4 + start : 4 + start + rank], B)
    assert out[:, 4:].count_nonzero() == B.count_nonzero()
    write_factor(out, 4, None, 0)
    assert not out[:, 4:].any()


def test_kernels_read_neighbouring_columns():
    pytest.importorskip("triton", reason="Triton is not installed; its kernels are tested where it is")
    from hasten.kernels.factor_columns.triton import Factor

    out, B = torch.empty(6, 24), torch.randn(5, 6).t()  # noqa: N806
    factor = Factor.beside(out, 16, B)
    assert factor.B is not None and torch.equal(factor.B, B) and factor.B.stride() == (5, 1)
    assert (factor.stride, factor.rank, factor.widened, factor.block) == (5, 5, 8, 8)
    assert Factor.beside(out[:, :16], 16, None) == Factor(None, 0, 0, 0, 1)
