"""What projections read, as the model's own forward shows it."""

import torch

from hasten.quant.moments import moments
from hasten.quant.stages import Stages


def all_moments(model, windows, weights=None):
    stages, found = Stages(model), {}
    texts = stages.opened(windows)
    for number in range(len(stages.layers)):
        found |= moments(stages, number, texts, weights or {})
        texts = stages.through(number, texts)
    return found


def test_moments_are_those_of_the_models_own_forward(windows, tiny_llama, inputs_of):
    found = all_moments(tiny_llama, windows.calibration)
    assert len(found) == 14
    for name, moment in found.items():
        x = inputs_of(tiny_llama, windows.calibration, name)
        torch.testing.assert_close(moment, x.t() @ x / len(x), rtol=1e-4, atol=1e-5)
    assert not any(module._forward_pre_hooks for module in tiny_llama.modules())


def test_layers_that_are_called_differently(windows, gemma, inputs_of):
    found, name = all_moments(gemma, windows.calibration), "model.layers.2.mlp.down_proj"
    x = inputs_of(gemma, windows.calibration, name)
    torch.testing.assert_close(found[name], x.t() @ x / len(x), rtol=1e-4, atol=1e-5)


def test_positions_that_count_more(windows, tiny_llama, inputs_of):
    name = "model.layers.0.mlp.up_proj"
    x = inputs_of(tiny_llama, windows.calibration, name)
    weights = torch.arange(len(x)).float()
    found = all_moments(tiny_llama, windows.calibration, {name: weights})
    torch.testing.assert_close(found[name], x.t() @ (x * weights[:, None]) / len(x), rtol=1e-4, atol=1e-4)
