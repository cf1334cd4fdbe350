"""Scales for codes that are known."""

import pytest
import torch

from hasten.quant import nf4
from hasten.quant.compensate import compensated, damped
from hasten.quant.refit import refitted


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 16, generator=generator) @ torch.randn(16, 192, generator=generator)
    x += 0.5 * torch.randn(400, 192, generator=generator)
    weight = torch.randn(700, 192, generator=generator)
    return weight, damped(x.t() @ x / len(x), 0.1)


def lost(weight, moment, made):
    error = made.values() - weight
    return ((error @ moment) * error).sum().item()


def test_codes_stay_and_less_is_lost(case):
    weight, moment = case
    first = compensated(weight, moment, nf4.stored_scales(nf4.largest(weight)))
    again = refitted(weight, moment, first)
    assert torch.equal(again.codes_NK, first.codes_NK)
    assert lost(weight, moment, again) < 0.97 * lost(weight, moment, first)
    third = refitted(weight, moment, compensated(weight, moment, again.scales))
    assert lost(weight, moment, third) < lost(weight, moment, again)


def test_it_is_the_least_squares_solution(case):
    """One row at a time, by torch's own least squares on a root of the moment."""
    weight, moment = case
    first = nf4.plain(weight)
    made = refitted(weight, moment, first).scales.values()
    root = torch.linalg.cholesky(moment.double())  # H = root root^T
    values = nf4.levels(torch.device("cpu"))[first.codes_NK.long()].double()
    for row in (0, 511, 512, 699):
        columns = torch.zeros(192, 3, dtype=torch.double)
        for b in range(3):
            columns[64 * b : 64 * (b + 1), b] = values[row, 64 * b : 64 * (b + 1)]
        best = torch.linalg.lstsq(root.t() @ columns, root.t() @ weight[row].double()[:, None]).solution[:, 0]
        torch.testing.assert_close(made[row].double(), best, rtol=0.02, atol=0.02)


def test_small_blocks(case):
    weight, moment = case
    small = refitted(weight, moment, nf4.plain(weight, nf4.SMALL_BLOCK))
    assert small.block == 32
    assert lost(weight, moment, small) < 0.95 * lost(weight, moment, refitted(weight, moment, nf4.plain(weight)))


def test_a_block_of_zeros_keeps_its_scale(case):
    weight, moment = case
    weight[3, 64:128] = 0
    made = refitted(weight, moment, nf4.plain(weight))
    assert made.values().isfinite().all() and made.values()[3, 64:128].abs().max() < 0.05
