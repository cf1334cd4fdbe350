"""Weights that become 8-bit floats while a checkpoint is read."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Qwen2Config

from hasten.errors import ModelError
from hasten.kernels.row_scaled.op import quantize
from hasten.loading.eight_bit import Fp8Linear
from hasten.loading.model import LoadOptions, load
from support import tiny

IDS = torch.arange(3, 19)[None]


def fp8(folder):
    return load(str(folder), LoadOptions(storage="fp8")).model


def test_layers_hold_what_quantizing_gives_and_the_head_is_plain(tiny_model_folder):
    model, plain = fp8(tiny_model_folder), load(str(tiny_model_folder), LoadOptions()).model
    found = {name: module for name, module in model.named_modules() if isinstance(module, Fp8Linear)}
    wanted = [name for name, module in plain.named_modules() if type(module) is nn.Linear and name != "lm_head"]
    assert list(found) == wanted and type(model.lm_head) is nn.Linear
    for name, module in found.items():
        eight = quantize(plain.get_submodule(name).weight.detach())
        assert torch.equal(module.weight, eight.codes) and torch.equal(module.weight_scale[:, 0], eight.scale)
        assert not module.weight.requires_grad
    logits = [each(IDS).logits for each in (model, plain)]
    assert 0 < (logits[0] - logits[1]).norm() < 0.1 * logits[1].norm()  # an 8-bit float is off by 2.6 % in the mean


def test_biases_are_read(tmp_path):
    plain = tiny.of_config(
        Qwen2Config(vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                    num_key_value_heads=1)
    )  # fmt: skip
    nn.init.normal_(plain.model.layers[0].self_attn.q_proj.bias)
    folder = tiny.save_model(tmp_path / "biased", plain)
    own = fp8(folder).model.layers[0].self_attn.q_proj
    assert torch.equal(own.bias, plain.model.layers[0].self_attn.q_proj.bias)


def test_gradients_pass_and_nothing_in_16_bits_is_kept(tiny_model_folder):
    layer = fp8(tiny_model_folder).model.layers[0].mlp.up_proj
    x = torch.randn(3, layer.in_features, requires_grad=True)
    weight = layer.weight.view(torch.float8_e4m3fn).float() * layer.weight_scale
    out = layer(x)
    torch.testing.assert_close(out, x @ weight.t())
    assert {part.dtype for part in out.grad_fn.saved_tensors} == {torch.uint8, torch.float32}
    assert sum(part.numel() for part in out.grad_fn.saved_tensors) == layer.weight.numel() + layer.out_features
    dy = torch.randn_like(out)
    out.backward(dy)
    torch.testing.assert_close(x.grad, dy @ weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_casting_a_model_leaves_scales_exact(tiny_model_folder):
    model = fp8(tiny_model_folder)
    layer = model.model.layers[0].mlp.up_proj
    scale = layer.weight_scale.clone()
    layer.to(torch.bfloat16)
    assert layer.weight_scale.dtype == torch.float32 and torch.equal(layer.weight_scale, scale)
    assert layer.weight.dtype == torch.uint8


def test_values_that_are_not_finite_are_refused(tiny_model_folder, tmp_path):
    folder = tiny.save_model(tmp_path / "broken", load(str(tiny_model_folder), LoadOptions()).model)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("inf")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ModelError, match=r"layers.1.mlp.up_proj.weight: it holds NaN or infinity"):
        fp8(folder)


def test_a_weight_that_is_missing(tiny_model_folder, tmp_path):
    folder = tiny.save_model(tmp_path / "lacking", load(str(tiny_model_folder), LoadOptions()).model)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ModelError, match="layers.1.mlp.up_proj.weight: the checkpoint has none"):
        fp8(folder)
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.ones(5, 64)
    save_file(tensors, file, {"format": "pt"})
    # transformers 5.24 refuses it itself, by the shape of the scales; 5.17 takes it
    with pytest.raises(ModelError, match=r"up_proj.weight: 5 x 64 codes. This layer has 128 x 64|mismatched_sizes"):
        fp8(folder)


def test_a_model_that_is_quantized_already(tmp_path, tiny_model_folder):
    folder = tiny.save_model(tmp_path / "marked", load(str(tiny_model_folder), LoadOptions()).model)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelError, match="quantized"):
        fp8(folder)


def test_such_a_model_is_not_saved_as_it_is(tiny_model_folder, tmp_path):
    with pytest.raises((ValueError, RuntimeError), match=r"(?i)seriali|not support"):
        fp8(tiny_model_folder).save_pretrained(tmp_path / "saved")
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("storage", ["fp8", "int8"])
def test_merged_it_is_what_the_adapter_was_trained_on(tiny_model_folder, storage):
    pytest.importorskip("bitsandbytes")
    from hasten.lora.attach import attach
    from hasten.lora.merge import merged_state_dict, quantized_weights
    from hasten.lora.settings import LoraSettings

    model = attach(load(str(tiny_model_folder), LoadOptions(storage=storage)).model, LoraSettings(r=4)).model
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    plain = load(str(tiny_model_folder), LoadOptions()).model
    shapes = {name: tuple(part.shape) for name, part in plain.named_parameters() if name.endswith("proj.weight")}
    assert quantized_weights(model) == shapes
    state = merged_state_dict(model, torch.float32)
    assert set(state) == set(plain.state_dict())
    plain.load_state_dict(state)
    # bitsandbytes rounds the inputs of whole numbers too; 8-bit floats are multiplied as they are.
    wanted = model(IDS).logits
    away = (plain(IDS).logits - wanted).norm() / wanted.norm()
    assert away < (1e-5 if storage == "fp8" else 0.05)


def test_leaving_the_meta_device(tiny_model_folder):
    layer = Fp8Linear(8, 4, False, torch.bfloat16).to_empty(device="cpu")
    assert layer.weight_scale.shape == (4, 1) and layer.weight_scale.dtype == torch.float32


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_whole_numbers_are_computed_in_the_dtype_of_the_model(tiny_model_folder, dtype):
    pytest.importorskip("bitsandbytes")
    from hasten.kernels.row_scaled.rows import row_scaled_of

    model = load(str(tiny_model_folder), LoadOptions(storage="int8", dtype=dtype)).model
    assert row_scaled_of(model.model.layers[0].mlp.up_proj).dtype == getattr(torch, dtype)
