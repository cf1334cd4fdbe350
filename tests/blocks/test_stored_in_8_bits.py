"""Weights kept in 8 bits inside the fast layers: the numbers of their dequantized weights, whatever computes them."""

import copy

import pytest
import torch
from torch import nn
from transformers import Qwen2Config

from blocks.test_quantized import adapted, results
from hasten.blocks.apply import apply, kept_values, refused_in_training, remove, set_policies
from hasten.blocks.fp8 import Operand8
from hasten.blocks.projections import Compute8
from hasten.kernels.row_scaled.op import quantize
from hasten.kernels.row_scaled.rows import row_scaled_of
from hasten.loading.eight_bit import Fp8Linear
from hasten.policies import POLICIES
from support import tiny
from support.as_good import require_as_good


def replace(model, make, keep=()):
    """Every linear layer of the decoder but those named, by what `make` gives for it."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head" and not any(part in name for part in keep):
            made = make(module)
            if module.bias is not None:
                made.bias = module.bias
            model.set_submodule(name, made.requires_grad_(False))
    return model


def floats(module):
    eight = quantize(module.weight.detach())
    made = Fp8Linear(module.in_features, module.out_features, module.bias is not None, module.weight.dtype)
    made.weight = nn.Parameter(eight.codes, requires_grad=False)
    made.weight_scale = eight.scale[:, None].clone()
    return made


def whole_numbers(module):
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="whole numbers of 8 bits are bitsandbytes'")
    made = bitsandbytes.nn.Linear8bitLt(
        module.in_features, module.out_features, module.bias is not None, has_fp16_weights=False
    )
    weight = bitsandbytes.nn.Int8Params(module.weight.detach().half(), requires_grad=False, has_fp16_weights=False)
    made.weight = weight.to("cpu")
    return made


def plain(module):
    """The same values in float64."""
    stored = row_scaled_of(module)
    if stored is None:
        return module
    made = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None, dtype=torch.float64)
    codes = stored.as_floats() if stored.floats else stored.codes
    made.weight.data = codes.double() * stored.scale.double()[:, None]
    return made


def llama():
    return tiny.llama(hidden_size=64, intermediate_size=128)


def with_biases():
    return tiny.of_config(
        Qwen2Config(
            vocab_size=128,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )


def three(make, base=llama, keep=()):
    """Fast, plain and exact, with one set of values."""
    model = replace(base(), make, keep)
    exact = adapted(replace(copy.deepcopy(model), plain)).double()
    fast, slow = adapted(copy.deepcopy(model)), adapted(model)
    applied = apply(fast)
    assert applied.complete, applied.line()
    return fast, slow, exact


@pytest.mark.parametrize("make", [floats, whole_numbers])
def test_logits_and_gradients(make):
    fast, slow, exact = three(make)
    if make is whole_numbers:  # bitsandbytes rounds the inputs too: the judge is the same model in 32 bits
        slow = copy.deepcopy(exact).float()
    require_as_good(results(fast), results(slow), results(exact))
    assert refused_in_training(fast) == set()


def test_with_biases():
    fast, slow, exact = three(floats, with_biases)
    require_as_good(results(fast), results(slow), results(exact))


def test_8_bit_and_other_weights_in_one_group():
    fast, slow, exact = three(floats, keep=("k_proj", "layers.1.mlp.up_proj"))
    require_as_good(results(fast), results(slow), results(exact))


@pytest.mark.parametrize("make", [floats, whole_numbers])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy(make, policy):
    fast, _, _ = three(make)
    kept = results(fast)
    set_policies(fast, [policy] * 2)
    for name, wanted in results(fast).items():
        assert torch.equal(wanted, kept[name]), name


def eight_of(model, *, turned):
    applied = apply(model, compute8=Compute8(turned=turned))
    assert applied.complete, applied.line()
    return applied


@pytest.mark.parametrize("turned", [True, False])
def test_8_bit_products_read_8_bit_floats_as_they_are(turned):
    base = replace(llama(), floats)
    wide = replace(copy.deepcopy(base), lambda module: plain(module).float())
    stored, copied = adapted(base), adapted(wide)
    codes = {name: part.clone() for name, part in stored.named_parameters() if part.dtype == torch.uint8}
    for model in (stored, copied):
        assert not eight_of(model, turned=turned).refused_8
    assert kept_values(copied)[1] == kept_values(stored)[0] == 0 < kept_values(stored)[1] == kept_values(copied)[0]
    own, wanted = results(stored), results(copied)
    for name, value in wanted.items():  # codes of codes are the same codes, their scales but for a rounding
        torch.testing.assert_close(own[name], value, rtol=1e-4, atol=1e-4 * float(value.abs().max()))
    group = stored.get_base_model().model.layers[0].hasten_fast.attention.qkv
    operand = group.in_use
    assert isinstance(operand, Operand8) and (operand.weights8.turned_KN is not None) == turned
    by_rows = operand.weights8.by_rows()
    assert by_rows.data_ptr() == group.modules[0].base_layer.weight.data_ptr()  # no copy
    remove(stored)
    for name, part in stored.named_parameters():
        if name in codes:
            assert torch.equal(part, codes[name]) and part.untyped_storage().nbytes() == part.numel()


def test_evaluations_read_the_weights_as_they_are_kept():
    base = replace(llama(), floats)
    reference, eight = adapted(copy.deepcopy(base)), adapted(base)
    assert apply(reference).complete
    eight_of(eight, turned=False)
    ids = torch.randint(3, 128, (2, 24), generator=torch.Generator().manual_seed(2))
    results(eight)
    with torch.no_grad():
        own, wanted = (model(input_ids=ids, use_cache=False).logits for model in (eight, reference))
    assert torch.equal(own, wanted)


def test_whole_numbers_stay_out_of_8_bit_products():
    model = adapted(replace(llama(), whole_numbers))
    applied = eight_of(model, turned=True)
    assert applied.refused_8 == {"whole numbers of 8 bits are no 8-bit floats": 8}
    assert kept_values(model) == (0, 0, 0)


def test_generation_and_removal():
    fast, slow, _ = three(floats)
    ids = torch.randint(3, 128, (1, 5), generator=torch.Generator().manual_seed(4))
    for model in (fast, slow):
        model.eval()
    own, wanted = (model.generate(input_ids=ids, max_new_tokens=6, do_sample=False) for model in (fast, slow))
    assert torch.equal(own, wanted)
    remove(fast)
    torch.testing.assert_close(results(fast.train())["logits"], results(slow.train())["logits"], rtol=0, atol=0)


@pytest.mark.parametrize("make", [floats, whole_numbers])
def test_values_that_are_loaded_into_a_fast_model(make):
    fast, slow, _ = three(make)
    results(fast)
    other = adapted(replace(tiny.llama(hidden_size=64, intermediate_size=128, seed=5), make))
    for model in (fast, slow):
        model.load_state_dict(other.state_dict())
    again = adapted(replace(tiny.llama(hidden_size=64, intermediate_size=128, seed=5), make))
    assert apply(again).complete
    own, wanted = results(fast), results(again)
    torch.testing.assert_close(own["logits"], wanted["logits"], rtol=1e-5, atol=1e-5)
