"""What an adapter began with travels with it, and with no other."""

import copy
import pickle

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from hasten.errors import ModelError
from hasten.loading.beginning import FILE, added_at_first, beginning_of, factors_of, fits, keep_beginning
from hasten.loading.model import LoadOptions, load
from support import tiny


def made(folder=None):
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj"], init_lora_weights=False)
    model = get_peft_model(tiny.llama(), config)
    keep_beginning(model, factors_of(model))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += 1.0
    if folder:
        model.peft_config["default"].base_model_name_or_path = str(folder)
    return model


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(part, right[name]) for name, part in left.items())


def test_what_it_added_at_first():
    model = made()
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    before = added_at_first(beginning_of(model), "model.layers.0.self_attn.q_proj", layer)
    a, b = layer.lora_A["default"].weight - 1.0, layer.lora_B["default"].weight - 1.0
    torch.testing.assert_close(before, 3.0 * b @ a)
    assert added_at_first(beginning_of(model), "model.layers.0.self_attn.k_proj", layer) is None
    assert added_at_first(None, "model.layers.0.self_attn.q_proj", layer) is None


@pytest.mark.parametrize("safe", [True, False])
def test_saved_and_loaded_with_the_adapter(tmp_path, safe):
    model = made()
    model.save_pretrained(str(tmp_path), safe_serialization=safe)
    other = made()
    keep_beginning(other, {})
    other.load_adapter(str(tmp_path), "default", is_trainable=True)
    assert equal(beginning_of(other), beginning_of(model)) and equal(factors_of(other), factors_of(model))
    PeftModel.save_pretrained(model, str(tmp_path / "without"))
    other.load_adapter(str(tmp_path / "without"), "default", is_trainable=True)
    assert beginning_of(other) is None
    with pytest.raises(ModelError, match="org/name: no folder on this computer.*download it first"):
        other.load_adapter("org/name", "default")


def test_a_second_adapter_has_nothing_to_do_with_it(tmp_path):
    model = made()
    PeftModel.save_pretrained(model, str(tmp_path))
    before = beginning_of(model)
    model.load_adapter(str(tmp_path), "second")
    assert beginning_of(model) is before
    model.save_pretrained(str(tmp_path / "one"), selected_adapters=["second"])
    assert not list(tmp_path.rglob(FILE))
    model.save_pretrained(str(tmp_path / "other rank"), is_main_process=False)
    assert not list(tmp_path.rglob(FILE))


def test_copies_are_on_their_own(tmp_path):
    model = made()
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert again.save_pretrained.args == (again,) and equal(beginning_of(again), beginning_of(model))


def test_an_earlier_adapters_beginning_is_refused(tiny_model_folder, tmp_path):
    model = made(tiny_model_folder)
    model.save_pretrained(str(tmp_path))
    nn.init.ones_(model.get_base_model().model.layers[0].self_attn.q_proj.lora_B["default"].weight)
    PeftModel.save_pretrained(model, str(tmp_path))  # into the same folder, by a program that does not know the file
    with pytest.raises(ModelError, match="not written beside this adapter_model.safetensors.*delete it"):
        load(str(tmp_path), LoadOptions())
    (tmp_path / FILE).unlink()
    load(str(tmp_path), LoadOptions())


def test_a_damaged_file(tiny_model_folder, tmp_path):
    made(tiny_model_folder).save_pretrained(str(tmp_path))
    (tmp_path / FILE).write_bytes(b"half")
    with pytest.raises(ModelError, match="could not be loaded"):
        load(str(tmp_path), LoadOptions())


def test_weights_that_are_partly_in_nf4_are_refused():
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="4-bit weights are bitsandbytes'")

    def linear(quant_type):
        layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False, quant_type=quant_type)
        layer.weight = bitsandbytes.nn.Params4bit(torch.ones(64, 64), requires_grad=False, quant_type=quant_type)
        layer.weight = layer.weight.to("cpu")
        return layer

    began = {f"base_model.model.{name}.{factor}.weight": None for name in "ab" for factor in ("lora_A", "lora_B")}
    assert fits(nn.ModuleDict({"a": linear("nf4"), "b": linear("nf4")}), began, "x")
    assert not fits(nn.ModuleDict({"a": linear("fp4"), "b": nn.Linear(2, 2)}), began, "x")
    with pytest.raises(ModelError, match=r"x: 1 of the 2 weights.*not in NF4 \(first: b\).*load_in_4bit"):
        fits(nn.ModuleDict({"a": linear("nf4"), "b": nn.Linear(2, 2)}), began, "x")
