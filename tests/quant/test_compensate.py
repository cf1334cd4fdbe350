"""Rounding in which later columns make up for earlier ones."""

import pytest
import torch

from hasten.quant import nf4, scales
from hasten.quant.compensate import compensated, damped, inverse_root


def inputs(width=192, rows=600):
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(rows, 24, generator=generator) @ torch.randn(24, width, generator=generator)
    return mixed + 0.3 * torch.randn(rows, width, generator=generator)


def output_error(weight, made, x):
    return (x @ (made.values() - weight).t()).square().mean().item()


def test_outputs_are_nearer_than_by_rounding():
    x, weight = inputs(), torch.randn(40, 192, generator=torch.Generator().manual_seed(1))
    stored = nf4.stored_scales(nf4.largest(weight))
    made = compensated(weight, damped(x.t() @ x / len(x), 0.01), stored)
    assert output_error(weight, made, x) < 0.3 * output_error(weight, scales.rounded(weight, stored), x)
    assert torch.equal(made.scales.codes, stored.codes)


def test_independent_inputs_leave_nothing_to_make_up_for():
    weight = torch.randn(8, 128, generator=torch.Generator().manual_seed(1))
    stored = nf4.stored_scales(nf4.largest(weight))
    made = compensated(weight, torch.diag(torch.linspace(0.5, 2.0, 128)), stored)
    assert torch.equal(made.codes_NK, scales.rounded(weight, stored).codes_NK)


def test_an_input_that_is_never_used():
    x, weight = inputs(), torch.randn(8, 192, generator=torch.Generator().manual_seed(1))
    x[:, 5] = 0
    made = compensated(weight, damped(x.t() @ x, 0.01), nf4.stored_scales(nf4.largest(weight)))
    assert made.values().isfinite().all()


def test_the_first_steps_by_hand():
    """The formula, column by column, without groups."""
    x, weight = inputs(64, 300), torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    stored = nf4.stored_scales(nf4.largest(weight))
    moment = x.t() @ x
    made = compensated(weight, damped(moment, 0.01), stored)
    order = moment.diagonal().argsort(descending=True)
    inverse = torch.linalg.inv(damped(moment, 0.01)[order][:, order].double())
    free, scale = weight.double()[:, order].clone(), stored.values()
    codes = torch.empty(5, 64, dtype=torch.uint8)
    for j in range(64):
        codes[:, order[j]] = nf4.nearest_codes(free[:, j], scale[:, 0])
        value = nf4.levels(torch.device("cpu"))[codes[:, order[j]].long()] * scale[:, 0]
        error = (free[:, j] - value) / inverse[0, 0]  # OBQ: remaining columns move along the inverse's row
        free[:, j:] -= error[:, None] * inverse[0]
        rest = inverse[1:, 1:] - inverse[1:, :1] @ inverse[:1, 1:] / inverse[0, 0]
        inverse = rest
    assert (made.codes_NK == codes).float().mean() > 0.97, "but for ties that float32 decides otherwise"


def test_the_root_of_the_inverse():
    moment = damped(inputs(64).t() @ inputs(64), 0.01)
    upper = inverse_root(moment)
    assert torch.equal(upper, upper.triu())
    identity = (upper.double().t() @ upper.double()) @ moment.double()
    assert (identity - torch.eye(64)).abs().max() == pytest.approx(0, abs=2e-2)
