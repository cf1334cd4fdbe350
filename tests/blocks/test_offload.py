"""Inputs that wait elsewhere: places, order, and forwards that are given up. Copies themselves are tested on GPUs."""

import copy
import gc

import pytest
import torch

from hasten.blocks import offload as module
from hasten.blocks.offload import Offload


def test_what_is_put_comes_back_in_any_order():
    offload = Offload()
    tensors = [torch.full((2, 3), float(number)) for number in range(4)]
    away = [offload.put(tensor) for tensor in tensors]
    assert [one.place for one in away] == [0, 1, 2, 3]
    for number in (3, 2, 1, 0):
        assert torch.equal(away[number].get(), tensors[number])
    del away
    gc.collect()
    assert offload.put(tensors[0]).place == 0


def test_no_two_living_inputs_share_a_place():
    offload = Offload()
    first, second = ([offload.put(torch.ones(2)) for _ in range(3)] for _ in range(2))
    assert [one.place for one in second] == [3, 4, 5]
    del first
    gc.collect()
    third = [offload.put(torch.ones(2)) for _ in range(4)]
    assert [one.place for one in third] == [0, 1, 2, 6]


def test_a_copied_model_starts_empty():
    offload = Offload()
    away = offload.put(torch.ones(2))
    assert copy.deepcopy(offload).waiting == [] and offload.waiting and away


def test_after_a_broken_forward_nothing_waits():
    offload = Offload()
    away = offload.put(torch.ones(2))
    offload.forget()
    assert offload.waiting == [] and torch.equal(away.get(), torch.ones(2))


@pytest.mark.gpu
def test_on_a_gpu_memory_is_reused_and_values_come_back():
    offload = Offload()
    torch.manual_seed(0)
    for size in (1000, 4000, 2000):  # grows, then fits
        tensors = [torch.randn(size, 64, device="cuda") for _ in range(6)]
        kept = [tensor.clone() for tensor in tensors]
        away = []
        while tensors:
            away.append(offload.put(tensors.pop(0)))
        while away:
            one = away.pop()
            assert torch.equal(one.get(), kept.pop())
    assert len(offload.memory) == 6 and len(offload.outgrown) == 6 and not offload.leaving and not offload.coming


@pytest.mark.gpu
def test_what_nobody_gets_is_waited_for():
    offload = Offload()
    away = [offload.put(torch.randn(4000, 64, device="cuda")) for _ in range(3)]
    away.pop().get()  # starts the one before it, which nobody gets
    assert len(offload.coming) == 1
    del away
    offload.put(torch.randn(10, device="cuda"))
    assert not offload.coming
    offload.forget()
    assert not offload.leaving


class OnACard:
    """A tensor of a made-up device."""

    is_cuda, device = True, torch.device("cuda:0")

    def detach(self):
        return self


def test_nothing_is_moved_or_pinned_where_the_device_has_the_hosts_memory(monkeypatch):
    monkeypatch.setattr(module, "shares_memory", lambda device: True)
    offload, tensor = Offload(), OnACard()
    away = offload.put(tensor)
    assert away.host is tensor and not offload.memory and not offload.leaving
    assert away.get() is tensor and not offload.coming
