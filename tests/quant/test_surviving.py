"""How much of an update is left after rounding to 4 bits."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from hasten.loading.beginning import factors_of, keep_beginning
from hasten.lora.originals import Originals
from hasten.quant import nf4
from hasten.quant.surviving import surviving_share

bitsandbytes = pytest.importorskip("bitsandbytes", reason="4-bit weights are bitsandbytes'")
SHAPE = (128, 256)


class One(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.a = bitsandbytes.nn.Linear4bit(SHAPE[1], SHAPE[0], bias=False, quant_type="nf4")
        self.a.weight = bitsandbytes.nn.Params4bit(
            weight.clone(), requires_grad=False, quant_type="nf4", module=self.a
        ).to("cpu")
        self.is_loaded_in_4bit = True

    def forward(self, x):
        return self.a(x)


def adapted(size):
    """A 4-bit layer, its 16-bit weight, and an update of `size` times its norm."""
    torch.manual_seed(0)
    weight = torch.randn(SHAPE)
    model = get_peft_model(One(weight), LoraConfig(r=8, target_modules=["a"]))
    layer = model.get_base_model().a
    nn.init.normal_(layer.lora_B["default"].weight)
    update = layer.get_delta_weight("default")
    layer.lora_B["default"].weight.data *= size * weight.norm() / update.norm()
    return model, weight


class Known(Originals):
    def __init__(self, weight):
        self.kept = weight

    def weight(self, name, kept):
        assert name == "a.weight" and kept.shape == self.kept.shape
        return self.kept


@pytest.mark.parametrize(("size", "low", "high"), [(0.002, -0.1, 0.2), (1.0, 0.9, 1.1)])
def test_small_updates_round_back_to_the_step_they_started_from(size, low, high):
    model, _ = adapted(size)
    assert low < surviving_share(model, None, torch.float32) < high


def test_between_two_steps_small_updates_arrive_on_average():
    model, weight = adapted(0.04)
    own, with_original = (
        surviving_share(model, None, torch.float32),
        surviving_share(model, Known(weight), torch.float32),
    )
    assert own < 0.5 and abs(with_original - 1.0) < 0.2


def test_the_share_is_that_of_the_rounded_weights():
    model, weight = adapted(0.3)
    layer = model.get_base_model().a
    update = layer.get_delta_weight("default")
    kept = bitsandbytes.functional.dequantize_4bit(layer.base_layer.weight.data, layer.base_layer.weight.quant_state)
    moved = nf4.plain(weight + update).values() - kept
    wanted = float((moved * update).sum() / update.square().sum())
    assert surviving_share(model, Known(weight), torch.float32) == pytest.approx(wanted, rel=1e-4)


def begun_and_moved(weight, model, size):
    """An adapter that began with an update, and has learnt another one of `size` times the weight's norm since."""
    layer = model.get_base_model().a
    before = layer.get_delta_weight("default").detach()
    keep_beginning(model, factors_of(model))
    learnt = torch.randn(SHAPE[0], 8)
    learnt *= size * weight.norm() / (layer.scaling["default"] * learnt @ layer.lora_A["default"].weight).norm()
    layer.lora_B["default"].weight.data += learnt
    return before, layer.get_delta_weight("default").detach() - before


def test_what_an_adapter_began_with_is_not_what_it_learnt():
    model, weight = adapted(0.08)
    before, learnt = begun_and_moved(weight, model, 0.04)
    kept = bitsandbytes.functional.dequantize_4bit(
        model.base_model.model.a.base_layer.weight.data, model.base_model.model.a.base_layer.weight.quant_state
    )
    for original, start in ((Known(weight), weight), (None, kept + before)):
        moved = nf4.plain(start + learnt).values() - nf4.plain(start).values()
        wanted = float((moved * learnt).sum() / learnt.square().sum())
        assert surviving_share(model, original, torch.float32) == pytest.approx(wanted, rel=1e-3)


def test_nothing_adapted_nothing_lost():
    plain = get_peft_model(nn.Sequential(nn.Linear(4, 4)), LoraConfig(target_modules=["0"]))
    assert surviving_share(plain, None, torch.float32) == 1.0
