"""Which projections are quantized."""

from types import SimpleNamespace

import pytest
import torch

from hasten.errors import CapabilityError, ModelError
from hasten.quant.layers import decoder_layers, refuse_quantized
from support import tiny


def test_every_projection_of_every_layer(tiny_llama):
    layers = decoder_layers(tiny_llama)
    assert [layer.name for layer in layers] == ["model.layers.0", "model.layers.1"]
    assert len(layers[1].projections) == 7 and not layers[1].uneven
    assert all(name.startswith("model.layers.1.") for name in layers[1].projections)
    assert layers[1].linears()["model.layers.1.mlp.up_proj"] is tiny_llama.model.layers[1].mlp.up_proj


def test_a_width_that_is_no_multiple_of_the_block_stays(windows):
    layers = decoder_layers(tiny.llama(intermediate_size=100))
    assert layers[0].uneven == ("model.layers.0.mlp.down_proj",)
    assert len(layers[0].projections) == 6


def test_nothing_that_fits():
    with pytest.raises(CapabilityError) as caught:
        decoder_layers(tiny.llama(hidden_size=48, intermediate_size=88))
    assert "no linear module whose width is a multiple of 64" in str(caught.value)
    assert "Keep it in 16 bit." in str(caught.value)


def test_no_list_of_layers(tiny_llama):
    tiny_llama.model.layers = torch.nn.Sequential(*tiny_llama.model.layers)
    with pytest.raises(CapabilityError) as caught:
        decoder_layers(tiny_llama)
    assert "model_type 'llama': no list of decoder layers at 'layers'" in str(caught.value)
    assert "load_in_4bit=True" in caught.value.remedy


def test_quantized_weights_are_refused():
    config = SimpleNamespace(quantization_config={"quant_method": "gptq"}, _name_or_path="org/name", model_type="llama")
    with pytest.raises(ModelError) as caught:
        refuse_quantized(config)
    assert str(caught.value).startswith("org/name: its weights are quantized already (gptq).")
    assert "Name the original model." in str(caught.value)
    refuse_quantized(SimpleNamespace(model_type="llama"))
