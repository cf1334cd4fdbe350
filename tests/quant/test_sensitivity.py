"""The price of an error against what it really costs, and layer by layer against one backward through the model."""

import pytest
import torch

from hasten.errors import CapabilityError
from hasten.quant.divergence import Reference
from hasten.quant.sensitivity import price
from hasten.quant.stages import Stages
from support import tiny

CPU = torch.device("cpu")


def only(**errors):
    """Errors of some projections, whatever they read."""
    return lambda layer, moments: {name: errors[name] for name in layer.projections if name in errors}


def test_prices_are_near_the_measured_divergence(windows):
    model = tiny.llama(hidden_size=128, intermediate_size=256, initializer_range=0.1)
    stages, many = Stages(model), (*windows.calibration, *windows.heldout)
    names = ["model.layers.0.mlp.down_proj", "model.layers.1.self_attn.o_proj", "model.layers.1.mlp.up_proj"]
    for seed, name in enumerate(names):
        weight = model.get_submodule(name).weight.data
        error = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)) * 0.02
        told = price(stages, many, only(**{name: [error, 2 * error]})).nats[name]
        with Reference(stages, many) as before:
            weight += error
            real = before.divergence()
            weight -= error
        assert told[0] == pytest.approx(real, rel=0.5), name
        assert told[1] == pytest.approx(4 * told[0], rel=1e-4)


def test_the_same_seed_the_same_prices_and_nothing_left(windows, tiny_llama):
    name = "model.layers.0.mlp.up_proj"
    errors = only(**{name: [0.1 * tiny_llama.get_submodule(name).weight.data]})
    first = price(Stages(tiny_llama), windows.calibration, errors)
    again = price(Stages(tiny_llama, CPU), windows.calibration, errors)
    assert first.nats == again.nats and first.nats.keys() == {name}
    assert (
        all(torch.equal(first.weights[one], again.weights[one]) for one in first.weights) and len(first.weights) == 14
    )
    positions = sum(map(len, windows.calibration))
    assert first.weights[name].shape == (positions,) and first.weights[name].mean() == pytest.approx(1.0, rel=1e-4)
    assert not any(module._forward_hooks for module in tiny_llama.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in tiny_llama.parameters())


def test_one_backward_through_the_model_weighs_positions_alike(windows, gemma):
    """The whole model's own forward and backward, with the targets that are drawn."""
    name, squares = "model.layers.0.self_attn.v_proj", []
    generator = torch.Generator().manual_seed(0)
    found = price(Stages(gemma, CPU), windows.calibration, only()).weights[name]
    gemma.get_submodule(name).register_forward_hook(
        lambda module, given, output: void(output.register_hook(lambda g: squares.append(g[0].square().mean(-1))))
    )
    for window in windows.calibration:
        logprobs = gemma(window[None], use_cache=False).logits[0].log_softmax(-1)
        targets = torch.multinomial(logprobs.detach().exp(), 1, generator=generator)
        logprobs.gather(-1, targets).sum().backward()
    together = torch.cat(squares)
    torch.testing.assert_close(found, together / together.mean(), rtol=1e-5, atol=1e-6)


def void(_):
    """A forward hook that returns something would change the output."""


def test_one_layer_at_a_time_is_placed(windows, placed_with):
    model = tiny.llama(num_hidden_layers=3)
    stages, seen = Stages(model, CPU), []
    calls = placed_with(model)
    homes = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}

    def errors_of(layer, moments):
        away = {name for name, home in homes.items() if model.get_parameter(name).data_ptr() != home}
        assert away and all(name.startswith(f"{layer.name}.") for name in away)
        assert moments.keys() == set(layer.projections)
        seen.append(layer.name)
        return {name: [torch.ones_like(linear.weight)] for name, linear in layer.linears().items()}

    price(stages, windows.calibration, errors_of)
    assert seen == [f"model.layers.{number}" for number in (2, 1, 0)]
    layers = [{one.split(".")[2] for one in away if ".layers." in one} for _, away in calls]
    assert max(map(len, layers)) == 1


def test_a_projection_that_no_text_reaches(windows, tiny_llama):
    tiny_llama.model.layers[1].mlp.spare = torch.nn.Linear(64, 64)
    with pytest.raises(CapabilityError) as caught:
        price(Stages(tiny_llama), windows.calibration, only())
    assert str(caught.value).startswith("model.layers.1.mlp.spare: the calibration text never reaches it.")
    assert "Give more rows" in str(caught.value)
