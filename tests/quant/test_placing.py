"""Weights elsewhere for a while."""

import pytest
import torch
from torch import nn

from hasten.quant.placing import lent, placed, tensors_of

CPU = torch.device("cpu")


def test_copies_are_placed_and_leave_again():
    linear = nn.Linear(4, 4)
    homes = [tensor.data_ptr() for tensor in tensors_of(linear)]
    before = linear.weight.detach().clone()
    with placed(tensors_of(linear), CPU):
        assert all(tensor.data_ptr() != home for tensor, home in zip(tensors_of(linear), homes, strict=True))
        linear.weight.data.zero_()
    assert torch.equal(linear.weight, before) and [one.data_ptr() for one in tensors_of(linear)] == homes


def test_changes_are_kept_at_home_where_that_is_asked():
    linear = nn.Linear(4, 4)
    home = linear.weight.data_ptr()
    with placed(tensors_of(linear), CPU, keep=True):
        linear.weight.data.fill_(3.0)
    assert (linear.weight == 3.0).all() and linear.weight.data_ptr() == home


def test_what_is_there_already_stays():
    linear = nn.Linear(4, 4)
    with placed(tensors_of(linear), None):
        linear.weight.data.fill_(3.0)
    assert (linear.weight == 3.0).all()


def test_everything_is_back_after_an_error():
    linear = nn.Linear(4, 4).bfloat16()
    before = linear.weight.detach().clone()
    with pytest.raises(KeyError), placed(tensors_of(linear), CPU, keep=True), lent({linear.weight: torch.ones(4, 4)}):
        assert linear.weight.dtype == torch.bfloat16 and (linear.weight == 1).all()
        raise KeyError
    assert torch.equal(linear.weight, before)


def test_shared_weights_are_one():
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    assert len(tensors_of(nn.Sequential(first, second))) == 1
