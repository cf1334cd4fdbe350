"""Merging and scaling (A17): the same factor live, merged, reloaded and exported."""

import copy

import pytest
import torch

from hasten.errors import CapabilityError
from hasten.loading.model import LoadOptions, load
from hasten.lora.attach import attach
from hasten.lora.merge import merged_state_dict
from hasten.lora.save import save_adapter
from hasten.lora.settings import LoraSettings

IDS = torch.randint(3, 128, (2, 12), generator=torch.Generator().manual_seed(0))


def adapted(model, **settings):
    model = attach(model, LoraSettings(**settings)).model.eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.requires_grad and "lora_A" not in name:
                value.add_(torch.randn(value.shape, generator=generator) * 0.1)
    return model


def logits_of_merge(base, model):
    base.load_state_dict(merged_state_dict(model))
    return base.eval()(IDS).logits


# Live: W x + s B (A x); merged: (W + s B A) x. Both are float32 sums of about 64 + 4 products of size 1, so they
# differ by rounding of order 68 * 2^-24 * |logit|, with |logit| below 10 here: 4e-5.
ROUNDING = 4e-5


@pytest.mark.parametrize(
    ("settings", "factor"),
    [
        ({"r": 16, "alpha": 16, "rslora": True}, 4.0),
        ({"r": 8, "alpha": 32}, 4.0),
        ({"r": 8, "alpha": 8}, 1.0),
    ],
)
def test_scaling_is_one_factor_everywhere(tiny_model_folder, tmp_path, settings, factor):
    base = load(str(tiny_model_folder), LoadOptions())
    model = adapted(copy.deepcopy(base.model), **settings)
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == factor
    delta = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    merged = merged_state_dict(model)["model.layers.0.self_attn.q_proj.weight"]
    torch.testing.assert_close(merged - layer.base_layer.weight, factor * delta, rtol=0, atol=1e-6)

    live = model(IDS).logits
    torch.testing.assert_close(logits_of_merge(base.model, model), live, rtol=0, atol=ROUNDING)
    save_adapter(model, base.tokenizer, tmp_path / "adapter", str(tiny_model_folder))
    again = load(str(tmp_path / "adapter"), LoadOptions()).model.eval()
    assert again.get_base_model().model.layers[0].self_attn.q_proj.scaling["default"] == factor
    assert torch.equal(again(IDS).logits, live)


def test_merging_leaves_the_live_model_alone(tiny_llama):
    model = adapted(tiny_llama, r=4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    merged_state_dict(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_names_and_shapes_are_those_of_the_plain_model(tiny_llama):
    plain = {name: value.shape for name, value in tiny_llama.state_dict().items()}
    assert {name: value.shape for name, value in merged_state_dict(adapted(tiny_llama, r=4)).items()} == plain


def test_a_fully_trained_head_and_bias_are_in_the_merge(tiny_llama):
    tiny_llama.config.tie_word_embeddings = False
    tiny_llama.lm_head.weight = torch.nn.Parameter(tiny_llama.lm_head.weight.detach().clone())
    plain = copy.deepcopy(tiny_llama)
    model = adapted(tiny_llama, r=4, modules_to_save=["lm_head"])
    trained = model.get_base_model().lm_head.modules_to_save["default"].weight
    assert torch.equal(merged_state_dict(model)["lm_head.weight"], trained)
    torch.testing.assert_close(logits_of_merge(plain, model), model(IDS).logits, rtol=0, atol=ROUNDING)


def test_an_adapter_on_tied_weights_is_refused(tiny_llama):
    assert tiny_llama.config.tie_word_embeddings
    model = attach(tiny_llama, LoraSettings(targets=["lm_head", "q_proj"])).model
    with pytest.raises(CapabilityError, match="tied.*save_method='lora'"):
        merged_state_dict(model)


def test_merge_of_a_4bit_base_is_what_the_adapter_was_trained_on(tiny_model_folder):
    pytest.importorskip("bitsandbytes")
    quantized = load(str(tiny_model_folder), LoadOptions(storage="nf4"))
    model = adapted(quantized.model, r=4)
    plain = load(str(tiny_model_folder), LoadOptions()).model
    torch.testing.assert_close(logits_of_merge(plain, model), model(IDS).logits, rtol=0, atol=ROUNDING)
