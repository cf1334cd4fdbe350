"""Folders in 8-bit floats: the layout that compressed-tensors writes, read by what reads published ones."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING

from export.hf.conftest import logits, merge
from hasten.errors import CapabilityError
from hasten.export.hf.base import open_model
from hasten.export.hf.dequantized import DequantizedFolder
from hasten.export.hf.fp8 import Fp8Format, write_fp8
from hasten.export.verify.weights import compare_weights
from hasten.loading.model import LoadOptions, load
from hasten.loading.published import published
from support import tiny


@pytest.fixture
def case(adapted):
    return adapted(tiny.llama(tied=False), target_modules=["q_proj", "down_proj"])


def is_linear(name):
    return name.endswith("proj.weight")


def test_values_are_within_half_a_step(case, tmp_path):
    written = write_fp8(open_model(case.adapter), tmp_path / "out")
    stored, merged, read = (
        load_file(tmp_path / "out" / "model.safetensors"),
        merge(case),
        DequantizedFolder(tmp_path / "out"),
    )
    assert dict(read.shapes) == dict(merged.shapes)
    assert written.tensors == len(stored) == len(merged.shapes) + sum(map(is_linear, merged.shapes))
    for name in merged.shapes:
        before = merged.read(name)
        if not is_linear(name):
            assert torch.equal(stored[name], before.to(torch.bfloat16))
            continue
        scale = stored[f"{name}_scale"]
        assert stored[name].dtype is torch.float8_e4m3fn and scale.dtype is torch.float32
        torch.testing.assert_close(scale, before.abs().amax(1, keepdim=True) / 448, rtol=1e-6, atol=0)
        # e4m3 has 3 bits behind the leading one, and steps of 2^-9 near zero; bfloat16 rounds once more when read.
        off = (stored[name].float() * scale - before).abs()
        assert bool((off <= before.abs() * 2**-4 + scale * 2**-10).all())


def test_what_is_in_16_bits_is_compared_exactly(case, tmp_path):
    write_fp8(open_model(case.adapter), tmp_path / "out")
    found = DequantizedFolder(tmp_path / "out")
    assert found.in_fp8 == Fp8Format(merge(case)).linear

    def compare():
        kind_of = {name: "E4M3" if name in found.in_fp8 else "BF16" for name in found.shapes}.__getitem__
        return compare_weights("fp8", merge(case), DequantizedFolder(tmp_path / "out"), kind_of, exact=True)[0]

    assert compare().state == "within"
    file = tmp_path / "out" / "model.safetensors"
    stored = load_file(file)
    stored["model.norm.weight"][0] += 0.01
    save_file(stored, file)
    assert "'model.norm.weight' is off by" in compare().said and compare().state == "wrong"


def test_the_layout_is_one_that_is_read(case, tmp_path):
    write_fp8(open_model(case.adapter), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    layout = published("out", config["quantization_config"])
    assert (layout.scale, layout.per, layout.plain) == ("weight_scale", "output", ("lm_head",))
    again = load(str(tmp_path / "out"), LoadOptions()).model.eval()
    expected = logits(case.live)
    # 3 bits of each weight: relative 2^-4 at most and 2^-4 / sqrt(3) in the mean, over the two layers' 14 products.
    off = (logits(again) - expected).norm() / expected.norm()
    assert 0 < float(off) < math.sqrt(14) * 2**-4 / math.sqrt(3)


def test_rows_of_zeros(adapted, tmp_path):
    model = tiny.llama(tied=False)
    model.model.layers[0].self_attn.k_proj.weight.data[3] = 0
    case = adapted(model, target_modules=["q_proj"])
    write_fp8(open_model(case.adapter), tmp_path / "out")
    assert not DequantizedFolder(tmp_path / "out").read("model.layers.0.self_attn.k_proj.weight")[3].any()


def test_what_routes_stays_in_sixteen_bits(adapted):
    fields = {"vocab_size": 131, "hidden_size": 48, "intermediate_size": 32, "num_hidden_layers": 2, "num_experts": 4}
    fields |= {"num_attention_heads": 4, "num_key_value_heads": 2, "moe_intermediate_size": 24, "head_dim": 16}
    case = adapted(tiny.of_config(CONFIG_MAPPING["qwen3_moe"](**fields)), target_modules=["q_proj"])
    made = Fp8Format(merge(case))
    assert made.ignored == ["lm_head", "model.layers.0.mlp.gate", "model.layers.1.mlp.gate"]
    assert "model.layers.1.mlp.experts.3.down_proj.weight" in made.linear


def test_models_that_are_not_for_it(adapted, tmp_path):
    fields = {"vocab_size": 131, "hidden_size": 48, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 16}
    fields |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}
    case = adapted(tiny.of_config(CONFIG_MAPPING["gpt_oss"](**fields)), target_modules=["q_proj"])
    with pytest.raises(CapabilityError, match=r"experts.down_proj': experts in one tensor.*Export 16 bits"):
        write_fp8(open_model(case.adapter), tmp_path / "out")


def test_models_without_such_layers(adapted, tmp_path):
    config = CONFIG_MAPPING["gpt2"](vocab_size=131, n_embd=48, n_layer=1, n_head=4, n_positions=64)
    case = adapted(tiny.of_config(config), target_modules=["c_attn"], fan_in_fan_out=True)
    with pytest.raises(CapabilityError, match="model_type 'gpt2': no linear layers by the names"):
        write_fp8(open_model(case.adapter), tmp_path / "out")
