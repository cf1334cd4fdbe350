"""Layers of long rows as one function: the numbers of two halves, and only the layer's input is kept."""

import copy

import pytest
import torch
from torch import nn

from hasten.blocks import layer, whole_layer
from hasten.blocks.apply import apply, set_policies
from hasten.blocks.offload import Offload
from support import tiny

IDS = torch.arange(2, 25).view(1, -1)


def with_head_norms():
    from transformers import Qwen3Config

    return tiny.of_config(
        Qwen3Config(vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                    num_key_value_heads=1, head_dim=16)
    )  # fmt: skip


def adapted(model, **changes):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    targets = ["q_proj", "k_proj", "o_proj", "gate_proj", "down_proj"]
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=targets, **changes))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model.train()


def results(model):
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    torch.manual_seed(3)
    out = model(input_ids=IDS, labels=IDS, use_cache=False)
    return [out.logits.detach(), *torch.autograd.grad(out.loss, learnt)]


@pytest.fixture
def long(monkeypatch):
    monkeypatch.setattr(layer, "LONG", 16)
    monkeypatch.setattr(whole_layer, "PART", 5)


def both(make, policy, full=False):
    model = make().double()
    model = model.train() if full else adapted(model)
    plain = copy.deepcopy(model)
    for each in (model, plain):
        set_policies(each, [policy] * apply(each).of)
    return model, plain


@pytest.mark.parametrize("policy", ["recompute", "offload"])
@pytest.mark.parametrize(("make", "full"), [(tiny.llama, False), (with_head_norms, False), (tiny.llama, True)])
def test_the_same_numbers(monkeypatch, policy, make, full):
    model, plain = both(make, policy, full)
    wanted = results(plain)
    monkeypatch.setattr(layer, "LONG", 16)
    monkeypatch.setattr(whole_layer, "PART", 5)
    parts = []
    forward = whole_layer.MlpHalf.forward
    monkeypatch.setattr(
        whole_layer.MlpHalf, "forward", lambda *args, **more: parts.append(len(args[2])) or forward(*args, **more)
    )
    torch.testing.assert_close(results(model), wanted, rtol=1e-9, atol=1e-12)
    assert parts == 2 * len(plain.get_decoder().layers if full else plain.base_model.model.model.layers) * [
        5,
        5,
        5,
        5,
        3,
    ]
    parts.clear()
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=IDS, use_cache=False).logits, wanted[0], rtol=1e-9, atol=1e-12)
    assert set(parts) == {5, 3}


def test_a_layer_keeps_its_input_alone(long, monkeypatch):
    model, _ = both(tiny.llama, "offload")
    kept = []
    put = Offload.put
    monkeypatch.setattr(Offload, "put", lambda self, tensor: kept.append(tensor.shape) or put(self, tensor))
    results(model)
    layers = model.config.num_hidden_layers
    assert kept == [(IDS.numel(), model.config.hidden_size)] * layers


def test_policies_that_keep_more_have_two_halves(long):
    model, plain = both(tiny.llama, "keep")
    set_policies(plain, ["recompute"] * plain.config.num_hidden_layers)
    torch.testing.assert_close(results(model), results(plain), rtol=1e-9, atol=1e-12)


def test_attention_dropout_is_replayed(long):
    model, plain = both(lambda: tiny.llama(attention_dropout=0.3), "recompute")
    set_policies(plain, ["keep"] * plain.config.num_hidden_layers)
    torch.testing.assert_close(results(model), results(plain), rtol=1e-9, atol=1e-12)
