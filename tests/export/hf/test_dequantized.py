"""Quantized folders are read as the values that transformers computes with."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from hasten.errors import ModelError
from hasten.export.hf.dequantized import DequantizedFolder
from hasten.files import write_json
from support import tiny

NAME = "model.layers.0.self_attn.q_proj"


def in_bits(folder, target, dtype, **settings):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    made = AutoModelForCausalLM.from_pretrained(folder, quantization_config=BitsAndBytesConfig(**settings), dtype=dtype)
    made.save_pretrained(target)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [True, False])
def test_four_bits(tiny_model_folder, tmp_path, dtype, kind, nested):
    functional = pytest.importorskip("bitsandbytes.functional", reason="4-bit weights are bitsandbytes'")
    settings = {"load_in_4bit": True, "bnb_4bit_quant_type": kind, "bnb_4bit_use_double_quant": nested}
    made = in_bits(tiny_model_folder, tmp_path / "four", dtype, **settings)
    found = DequantizedFolder(tmp_path / "four")
    assert "quantization_config" not in found.config
    plain = {name: tuple(value.shape) for name, value in tiny.llama().named_parameters()}
    assert dict(found.shapes) == plain
    for name, module in made.named_modules():
        if hasattr(getattr(module, "weight", None), "quant_state"):
            theirs = functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            assert torch.equal(found.read(f"{name}.weight"), theirs)
            assert (f"{name}.weight" in found.in_nf4) is (kind == "nf4")
    assert torch.equal(found.read("model.embed_tokens.weight"), made.model.embed_tokens.weight)


def test_whole_numbers_of_eight_bits(tiny_model_folder, tmp_path):
    pytest.importorskip("bitsandbytes", reason="these are bitsandbytes'")
    in_bits(tiny_model_folder, tmp_path / "eight", torch.float16, load_in_8bit=True)
    found = DequantizedFolder(tmp_path / "eight")
    original = load_file(tiny_model_folder / "model.safetensors")
    assert set(found.shapes) == set(original) and found.in_nf4 == found.in_fp8 == frozenset()
    for name, value in original.items():
        own = found.read(name)
        # A step is 1/127 of a row's largest value, and values are off by half of one; float16 adds its own rounding,
        # of which the smallest step is 2^-24.
        step = value.abs().amax(-1, keepdim=True) / 127 if "proj" in name else value.abs() * 0
        assert bool(((own.float() - value).abs() <= step / 2 * 1.01 + value.abs() * 2**-10 + 2**-24).all())


@pytest.mark.parametrize("per", ["output", "block", "tensor"])
def test_eight_bit_floats(tmp_path, per):
    torch.manual_seed(0)
    codes = torch.randn(40, 24).to(torch.float8_e4m3fn)
    if per == "block":
        scale, name = torch.rand(3, 2), "weight_scale_inv"
        config = {"quant_method": "fp8", "weight_block_size": [16, 16]}
        grid = scale.repeat_interleave(16, 0)[:40].repeat_interleave(16, 1)[:, :24]
    else:
        scale, name = (torch.rand(40, 1) if per == "output" else torch.rand(1)), "weight_scale"
        weights = {"num_bits": 8, "type": "float", "symmetric": True}
        weights["strategy"] = "channel" if per == "output" else "tensor"
        groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
        config = {"quant_method": "compressed-tensors", "config_groups": groups, "ignore": ["lm_head"]}
        grid = scale
    kept = {f"{NAME}.weight": codes, f"{NAME}.{name}": scale, "lm_head.weight": torch.ones(3, 24)}
    save_file(kept, tmp_path / "model.safetensors")
    write_json(tmp_path / "config.json", {"model_type": "llama", "dtype": "float32", "quantization_config": config})
    found = DequantizedFolder(tmp_path)
    assert set(found.shapes) == {f"{NAME}.weight", "lm_head.weight"}
    assert found.in_fp8 == {f"{NAME}.weight"} and found.in_nf4 == frozenset()
    assert torch.equal(found.read(f"{NAME}.weight"), codes.float() * grid)
    save_file({**kept, f"{NAME}.{name}": torch.ones(7, 3)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=f"{NAME}.weight'.*its scales are.*A weight of 40 x 24 has"):
        DequantizedFolder(tmp_path).read(f"{NAME}.weight")
    save_file({name: value for name, value in kept.items() if "scale" not in name}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="float8_e4m3fn without scales.*original 16-bit"):
        DequantizedFolder(tmp_path).read(f"{NAME}.weight")


def test_another_way_of_quantizing(tiny_model_folder):
    config = json.loads((tiny_model_folder / "config.json").read_text())
    write_json(tiny_model_folder / "config.json", {**config, "quantization_config": {"quant_method": "gptq"}})
    with pytest.raises(ModelError, match="quantized by gptq.*Read are bitsandbytes and 8-bit floats"):
        DequantizedFolder(tiny_model_folder)
