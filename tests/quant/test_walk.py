"""Through the layers one at a time."""

import torch

from hasten.quant.layers import decoder_layers
from hasten.quant.walk import walk
from support import tiny


def seen_inputs(model, windows, name):
    found = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, arguments: found.append(arguments[0][0]))
    with torch.no_grad():
        for window in windows:
            model(input_ids=window[None])
    handle.remove()
    return torch.cat(found)


def test_moments_are_those_of_the_models_own_forward(windows, tiny_llama):
    layers, found = decoder_layers(tiny_llama), {}
    walk(tiny_llama, layers, windows.calibration, lambda layer, moments: found.update(moments))
    assert found.keys() == {name for layer in layers for name in layer.projections}
    for name, moment in found.items():
        x = seen_inputs(tiny_llama, windows.calibration, name)
        torch.testing.assert_close(moment, x.t() @ x / len(x), rtol=1e-4, atol=1e-5)
    assert not any(module._forward_pre_hooks for module in tiny_llama.modules())


def test_later_layers_see_what_changed_layers_give(windows, tiny_llama):
    layers, found = decoder_layers(tiny_llama), {}

    def change(layer, moments):
        found.update(moments)
        for name in layer.projections:
            tiny_llama.get_submodule(name).weight.data.mul_(1.3)

    walk(tiny_llama, layers, windows.calibration, change)
    name = "model.layers.1.self_attn.q_proj"
    x = seen_inputs(tiny_llama, windows.calibration, name)
    torch.testing.assert_close(found[name], x.t() @ x / len(x), rtol=1e-4, atol=1e-5)


def test_layers_that_are_called_differently(windows):
    """Gemma 3 gives its layers one of two masks and one of two rotations."""
    from transformers import Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=8,
        max_position_embeddings=64,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )
    model, found = tiny.of_config(config), {}
    walk(model, decoder_layers(model), windows.calibration, lambda layer, moments: found.update(moments))
    name = "model.layers.2.mlp.down_proj"
    x = seen_inputs(model, windows.calibration, name)
    torch.testing.assert_close(found[name], x.t() @ x / len(x), rtol=1e-4, atol=1e-5)
