"""Adapters that begin inside the weights are saved as plain ones that say the same of the weights as they were."""

import copy
import json

import pytest
import torch
from peft import PeftModel

from hasten.errors import ConfigError, ModelError, TrainingError
from hasten.loading.beginning import beginning_in
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


def learnt(model):
    return {name: part.clone() for name, part in model.named_parameters() if "lora_" in name}


def bases(model):
    return {name: part.clone() for name, part in model.named_parameters() if ".base_layer." in name}


@pytest.fixture
def other_vectors(monkeypatch):
    """Another machine's singular vectors: of other signs, with other rounding."""
    svd, qr = torch.linalg.svd, torch.linalg.qr

    def changed(function):
        def compute(*args, **kwargs):
            first, *rest, last = function(*args, **kwargs)
            return (-first * (1 + 1e-6), *rest, -last * (1 - 2e-6))

        return compute

    def change():
        monkeypatch.setattr(torch.linalg, "svd", changed(svd))
        monkeypatch.setattr(torch.linalg, "qr", changed(qr))

    return change


def fresh(folder, began=None, *, init="pissa", dtype="float32", r=4):
    model = load(str(folder), LoadOptions(dtype=dtype)).model
    return attach(model, LoraSettings(r=r, alpha=8), began=began, init_lora_weights=init).model


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("init", ["pissa", "olora", "pissa_niter_4"])
def test_resumed_on_the_base_that_it_began_with(tiny_model_folder, tmp_path, other_vectors, init, dtype):
    model = fresh(tiny_model_folder, init=init, dtype=dtype)
    before, began = bases(model), initial_of(model)
    learn(model)
    model.save_pretrained(str(tmp_path))
    other_vectors()
    threads = torch.get_num_threads()
    for number in (1, 4):  # singular vectors are others with each
        torch.set_num_threads(number)
        try:
            again = fresh(tiny_model_folder, beginning_in(tmp_path), init=init, dtype=dtype)
        finally:
            torch.set_num_threads(threads)
        again.load_adapter(str(tmp_path), "default", is_trainable=True)
        for kept, now in ((before, bases(again)), (began, initial_of(again)), (learnt(model), learnt(again))):
            assert kept.keys() == now.keys() and all(torch.equal(part, now[name]) for name, part in kept.items())


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_trainer_that_loads_a_checkpoint_gets_its_base(tiny_model_folder, tmp_path, other_vectors, init):
    model = fresh(tiny_model_folder, init=init)
    learn(model)
    model.save_pretrained(str(tmp_path))
    other_vectors()
    again = fresh(tiny_model_folder, init=init)
    apart = copy.deepcopy(again)
    again.load_adapter(str(tmp_path), "default", is_trainable=True)
    PeftModel.load_adapter(apart, str(tmp_path), "default", is_trainable=True)
    for name, part in bases(model).items():
        torch.testing.assert_close(bases(again)[name], part, rtol=2**-23, atol=0)
    far, near = ((each(IDS).logits - model(IDS).logits).abs().max() for each in (apart, again))
    assert near < far, "the base that was computed here is another one"
    assert all(torch.equal(part, initial_of(again)[name]) for name, part in initial_of(model).items())


def test_a_checkpoint_without_its_beginning_goes_on_as_it_did(tiny_model_folder, tmp_path):
    model = fresh(tiny_model_folder)
    PeftModel.save_pretrained(model, str(tmp_path))
    assert beginning_in(tmp_path) is None
    before = bases(model)
    model.load_adapter(str(tmp_path), "default", is_trainable=True)
    assert all(torch.equal(part, before[name]) for name, part in bases(model).items())


def test_another_adapters_beginning_is_refused(tiny_model_folder):
    began = initial_of(fresh(tiny_model_folder))
    with pytest.raises(ModelError, match=r"began with.*\(4, 128\).*adapter has \(2, 128\).*rank and targets"):
        fresh(tiny_model_folder, began, r=2)
    began.popitem()
    with pytest.raises(ModelError, match="nothing for 'base_model"):
        fresh(tiny_model_folder, began)


def test_dora_is_refused(tiny_llama):
    with pytest.raises(ConfigError, match="'pissa_niter_4' with use_dora"):
        attach(tiny_llama, LoraSettings(), init_lora_weights="pissa_niter_4", use_dora=True)


def test_others_begin_at_zero(tiny_llama):
    assert begins_inside("pissa_niter_16") and not any(map(begins_inside, (True, False, "gaussian", "orthogonal")))
    model = attach(tiny_llama, LoraSettings(), init_lora_weights="gaussian").model
    assert initial_of(model) is None
    assert all(not part.any() for name, part in model.named_parameters() if "lora_B" in name)
