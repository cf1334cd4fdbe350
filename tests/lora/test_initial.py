"""Adapters that begin inside the weights are saved as plain ones that say the same of the weights as they were."""

import copy
import json

import pytest
import torch
from peft import PeftModel

from hasten.errors import ConfigError, ModelError, TrainingError
from hasten.loading.model import LoadOptions, load
from hasten.loading.source import begins_inside
from hasten.lora.attach import attach
from hasten.lora.initial import initial_of
from hasten.lora.merge import merged_state_dict
from hasten.lora.save import refuse_untouched, save_adapter
from hasten.lora.settings import LoraSettings

IDS = torch.arange(3, 19)[None]
ROUNDING = 1e-5


def begun(folder, init="pissa", **changes):
    loaded = load(str(folder), LoadOptions())
    plain = copy.deepcopy(loaded.model)
    settings = LoraSettings(r=4, alpha=8, init=init, **changes)
    return attach(loaded.model, settings, rank_pattern={"up_proj": 3}), plain, loaded.tokenizer


def learn(model):
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += 0.05 * torch.randn_like(parameter)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_what_is_saved_fits_the_weights_as_they_were(tiny_model_folder, tmp_path, init, rslora):
    attached, plain, tokenizer = begun(tiny_model_folder, init, rslora=rslora)
    model = attached.model
    assert any("begins inside the weights" in note for note in attached.notes)
    before = model.base_model.model.model.layers[0].mlp.up_proj.base_layer.weight
    assert not torch.allclose(before, plain.model.layers[0].mlp.up_proj.weight)
    torch.testing.assert_close(model(IDS).logits, plain(IDS).logits, rtol=0, atol=ROUNDING)  # nothing is learnt yet
    learn(model)
    save_adapter(model, tokenizer, tmp_path / "saved", str(tiny_model_folder))
    config = json.loads((tmp_path / "saved" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["r"] == 8 and config["rank_pattern"] == {"up_proj": 6} and config["init_lora_weights"] is True
    again = PeftModel.from_pretrained(plain, str(tmp_path / "saved"))
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits, rtol=0, atol=ROUNDING)


def test_merged_it_is_the_model_that_was_trained(tiny_model_folder):
    attached, plain, _ = begun(tiny_model_folder)
    learn(attached.model)
    plain.load_state_dict(merged_state_dict(attached.model))
    torch.testing.assert_close(plain(IDS).logits, attached.model(IDS).logits, rtol=0, atol=ROUNDING)


def test_nothing_learnt(tiny_model_folder):
    model = begun(tiny_model_folder)[0].model
    with pytest.raises(TrainingError, match="what it began as"):
        refuse_untouched(model)
    learn(model)
    refuse_untouched(model)


@pytest.mark.parametrize("storage", ["nf4", "fp8"])
def test_weights_in_few_bits_are_refused(tiny_model_folder, storage):
    if storage == "nf4":
        pytest.importorskip("bitsandbytes")
    model = load(str(tiny_model_folder), LoadOptions(storage=storage)).model
    with pytest.raises(ConfigError, match="'pissa' on weights in 4 or 8 bits.*16 bits"):
        attach(model, LoraSettings(init="pissa"))


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_embedding_and_head_are_refused(tiny_llama, target):
    with pytest.raises(ConfigError, match=f"'pissa' with target '{target}'"):
        attach(tiny_llama, LoraSettings(init="pissa", targets=["q_proj", target]))


def test_a_checkpoint_is_not_taken_for_an_adapter(tiny_model_folder, tmp_path):
    model = begun(tiny_model_folder)[0].model
    model.save_pretrained(str(tmp_path / "checkpoint"))
    with pytest.raises(ModelError, match="'pissa'.*plain adapter"):
        load(str(tmp_path / "checkpoint"), LoadOptions())


def test_dora_is_refused(tiny_llama):
    with pytest.raises(ConfigError, match="'pissa_niter_4' with use_dora"):
        attach(tiny_llama, LoraSettings(), init_lora_weights="pissa_niter_4", use_dora=True)


def test_others_begin_at_zero(tiny_llama):
    assert begins_inside("pissa_niter_16") and not any(map(begins_inside, (True, False, "gaussian", "orthogonal")))
    model = attach(tiny_llama, LoraSettings(), init_lora_weights="gaussian").model
    assert initial_of(model) is None
    assert all(not part.any() for name, part in model.named_parameters() if "lora_B" in name)
