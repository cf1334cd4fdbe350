"""The price of an error against what it really costs."""

import pytest
import torch

from hasten.quant.divergence import Reference
from hasten.quant.sensitivity import price
from support import tiny


def test_prices_are_near_the_measured_divergence(windows):
    model = tiny.llama(hidden_size=128, intermediate_size=256, initializer_range=0.1)
    many = (*windows.calibration, *windows.heldout)
    names = ["model.layers.0.mlp.down_proj", "model.layers.1.self_attn.o_proj", "model.layers.1.mlp.up_proj"]
    for seed, name in enumerate(names):
        weight = model.get_submodule(name).weight.data
        error = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)) * 0.02
        told = price(model, many, {name: [error, 2 * error]}).nats[name]
        with Reference(model, many) as before:
            weight += error
            real = before.divergence(model)
            weight -= error
        assert told[0] == pytest.approx(real, rel=0.5), name
        assert told[1] == pytest.approx(4 * told[0], rel=1e-4)


def test_the_same_seed_the_same_prices_and_no_hooks_left(windows, tiny_llama):
    name = "model.layers.0.mlp.up_proj"
    error = 0.1 * tiny_llama.get_submodule(name).weight.data
    first = price(tiny_llama, windows.calibration, {name: [error]})
    again = price(tiny_llama, windows.calibration, {name: [error]})
    assert first.nats == again.nats
    positions = sum(map(len, windows.calibration))
    assert first.weights[name].shape == (positions,) and first.weights[name].mean() == pytest.approx(1.0, rel=1e-4)
    assert not any(module._forward_hooks for module in tiny_llama.modules())
