"""4-bit weights that bitsandbytes would read wrongly are refused."""

import pytest
import torch
from torch import nn

from hasten.errors import CapabilityError
from hasten.loading.four_bit import keep_trainable, require_read_right

bitsandbytes = pytest.importorskip("bitsandbytes", reason="4-bit weights are bitsandbytes'")


def layer(inputs, outputs=64):
    made = bitsandbytes.nn.Linear4bit(inputs, outputs, bias=False, quant_type="nf4")
    torch.manual_seed(0)
    weight = bitsandbytes.nn.Params4bit(
        torch.randn(outputs, inputs), requires_grad=False, quant_type="nf4", module=made
    )
    made.weight = weight.to("cpu")
    return made


@pytest.fixture
def misread(monkeypatch):
    """bitsandbytes 0.50 on CPUs with its own library; simulated where it is right."""
    dequantize = bitsandbytes.functional.dequantize_4bit
    monkeypatch.setattr(bitsandbytes.functional, "dequantize_4bit", lambda *args: 1.3 * dequantize(*args))


def test_rows_that_are_not_whole_blocks_are_refused(misread):
    model = nn.Sequential(layer(64), layer(96))
    with pytest.raises(CapabilityError) as caught:
        require_read_right(model)
    assert caught.value.subject == "1"
    assert "rows of 96 values" in str(caught.value)


def test_whole_blocks_and_other_layers_are_not_looked_into(misread):
    require_read_right(nn.Sequential(layer(64), layer(128), nn.Linear(3, 3), nn.ReLU()))


def test_what_is_read_right_passes(monkeypatch):
    from hasten.kernels.nf4.op import dequantize
    from hasten.kernels.nf4.packed import packed_of

    def right(codes, state):
        out = torch.empty(state.shape)
        dequantize(packed_of(model[0].weight), out)
        return out

    model = nn.Sequential(layer(96))
    monkeypatch.setattr(bitsandbytes.functional, "dequantize_4bit", right)
    require_read_right(model)


def test_layers_keep_the_layout_that_has_a_gradient():
    model = nn.Sequential(layer(64))
    model[0].support_avx512bf16_for_cpu = True
    keep_trainable(model)
    assert model[0].support_avx512bf16_for_cpu is False
