"""Through the layers one at a time."""

import torch

from hasten.quant.stages import Stages
from hasten.quant.walk import walk
from support import tiny


def test_later_layers_see_what_changed_layers_give(windows, tiny_llama, inputs_of):
    found = {}

    def change(layer, moments):
        found.update(moments)
        for module in layer.linears().values():
            module.weight.data.mul_(1.3)

    before = tiny_llama.model.layers[1].mlp.up_proj.weight.clone()
    walk(Stages(tiny_llama), windows.calibration, change)
    assert len(found) == 14 and torch.equal(tiny_llama.model.layers[1].mlp.up_proj.weight, 1.3 * before)
    name = "model.layers.1.self_attn.q_proj"
    x = inputs_of(tiny_llama, windows.calibration, name)
    torch.testing.assert_close(found[name], x.t() @ x / len(x), rtol=1e-4, atol=1e-5)


def test_changes_reach_a_model_that_stays_on_the_host(windows):
    def change(layer, moments):
        for module in layer.linears().values():
            module.weight.data.mul_(1.3)

    whole, streamed = tiny.llama(), tiny.llama()
    walk(Stages(whole), windows.calibration, change)
    walk(Stages(streamed, torch.device("cpu")), windows.calibration, change)
    for name, value in whole.state_dict().items():
        assert torch.equal(streamed.state_dict()[name], value), name
