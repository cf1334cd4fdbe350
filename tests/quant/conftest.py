"""Windows of random tokens for the tiny models, a watch over what is placed, and figures of a model that never was."""

import pytest
import torch
from transformers import Gemma3TextConfig

from hasten.quant.calibration import Windows
from hasten.quant.dynamic import Projection, Quantized
from support import tiny

PROJECTIONS = (
    Projection("model.layers.0.self_attn.q_proj", 0, "self_attn.q_proj", (64, 64), 4, 64, 3000, 3000, 1e-5),
    Projection("model.layers.0.mlp.<b>", 0, "mlp.<b>", (64, 64), 16, 0, 8192, 3000, 2e-2),
    Projection("model.layers.1.self_attn.q_proj", 1, "self_attn.q_proj", (64, 64), 4, 32, 3000, 3000, 0.0),
    Projection("model.layers.1.mlp.odd", 1, "mlp.odd", (64, 100), 16, 0, 12800, 12800, 0.0, "its width 100 is odd"),
)


@pytest.fixture(scope="session")
def windows():
    """Eight windows to calibrate on and four to measure on, of 48 tokens each."""
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randint(0, 128, (12, 48), generator=generator)
    return Windows(tuple(drawn[:8]), tuple(drawn[8:]))


@pytest.fixture
def inputs_of():
    """What a module of a model reads in the model's own forward of some windows, ``[positions, K]``."""

    def read(model, windows, name):
        found = []
        handle = model.get_submodule(name).register_forward_pre_hook(lambda _, given: found.append(given[0][0]))
        with torch.no_grad():
            for window in windows:
                model(input_ids=window[None])
        handle.remove()
        return torch.cat(found)

    return read


@pytest.fixture
def gemma():
    """Gemma 3 gives its layers one of two masks and one of two rotations, and ties its head to its embedding."""
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
    return tiny.of_config(config)


@pytest.fixture
def placed_with():
    """Names of all weights that are not at home when a module with weights computes, for each such call."""

    def watch(model):
        homes = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
        calls = []

        def look(name):
            def on_forward(*_):
                away = {one for one, home in homes.items() if model.get_parameter(one).data_ptr() != home}
                calls.append((name, away))

            return on_forward

        for name, module in model.named_modules():
            if module._parameters:
                module.register_forward_pre_hook(look(name))
        return calls

    return watch


@pytest.fixture
def figures():
    """Two layers, one projection that keeps 16 bit by choice and one by its shape."""
    return Quantized(
        PROJECTIONS,
        budget=1.6,
        bytes=14192,
        plain_bytes=9000,
        divergence=0.05,
        plain_divergence=0.2,
        calibration_tokens=4096,
        heldout_tokens=2048,
        streamed=False,
    )
