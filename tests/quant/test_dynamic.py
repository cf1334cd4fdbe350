"""Choosing codes, scales and bits for a model."""

import copy
import functools
from dataclasses import replace

import pytest
import torch

from hasten.errors import ConfigError, ModelError
from hasten.quant import nf4
from hasten.quant.dynamic import QuantizeSettings, quantize, storage_dtype, upgraded, upgraded_bytes
from support import tiny


def model(**changes):
    """Rows of one block and of three, which are more columns than are corrected at once (128)."""
    fields = {"hidden_size": 64, "intermediate_size": 192, "initializer_range": 0.1}
    return tiny.llama(**(fields | changes))


@pytest.fixture(scope="module")
def quantized(windows):
    """A model within a budget, its codes and its figures: made once for all tests that look at it."""

    @functools.cache
    def within(budget, bits):
        small = model(tied=False)
        return small, *quantize(small, windows, QuantizeSettings(budget=budget, upgrade_bits=bits))

    return within


def of(figures, name):
    return next(projection for projection in figures.projections if projection.name == name)


@pytest.mark.parametrize(("budget", "bits"), [(1.0, 16), (1.1, 8), (1.1, 16), (1.5, 8), (4.0, 16)])
def test_the_budget_is_kept(quantized, budget, bits):
    _, codes, figures = quantized(budget, bits)
    plain = sum(nf4.stored_bytes(projection.shape) for projection in figures.projections)
    spent = sum(
        nf4.stored_bytes(projection.shape, projection.block)
        if projection.name in codes
        else upgraded_bytes(projection.shape, bits)
        for projection in figures.projections
    )
    assert (figures.bytes, figures.plain_bytes) == (spent, plain)
    assert spent <= budget * plain and figures.ratio == spent / plain
    assert {projection.name for projection in figures.projections if projection.bits == 4} == codes.keys()
    assert all(codes[one.name].block == one.block for one in figures.projections if one.bits == 4)
    better = [one for one in figures.projections if one.block != 64]
    assert bool(better) == (budget > 1.0) and bool(codes) == (budget < 4.0)


def test_nearer_to_the_original_than_plain_nf4(quantized):
    figures, more = quantized(1.0, 16)[2], quantized(1.1, 16)[2]
    assert figures.divergence < 0.8 * figures.plain_divergence
    assert more.divergence < figures.divergence
    assert more.plain_divergence == pytest.approx(figures.plain_divergence, rel=1e-5)


def test_the_model_holds_the_values_that_the_codes_stand_for(quantized):
    original, (small, codes, figures) = model(tied=False), quantized(1.1, 16)
    assert {projection.bits for projection in figures.projections} == {4, 16}
    for projection in figures.projections:
        now = small.get_submodule(projection.name).weight
        before = original.get_submodule(projection.name).weight
        expected = codes[projection.name].values() if projection.name in codes else before.bfloat16().float()
        assert torch.equal(now, expected)
    assert torch.equal(small.lm_head.weight, original.lm_head.weight)
    assert all(parameter.requires_grad for parameter in small.parameters()), "as it was"


def test_one_layer_at_a_time_gives_the_same(quantized, windows, placed_with):
    (whole, codes, figures), streamed = quantized(1.1, 16), model(tied=False)
    calls = placed_with(streamed)
    same, told = quantize(streamed, windows, QuantizeSettings(budget=1.1), device=torch.device("cpu"))
    assert told.streamed and not figures.streamed and replace(told, streamed=False) == figures
    assert same.keys() == codes.keys()
    for name, weight in codes.items():
        assert torch.equal(same[name].codes_NK, weight.codes_NK), name
        assert torch.equal(same[name].scales.values(), weight.scales.values()), name
    for name, value in whole.state_dict().items():
        assert torch.equal(streamed.state_dict()[name], value), name
    layers = [{one.split(".")[2] for one in away if ".layers." in one} for _, away in calls]
    assert max(map(len, layers)) == 1 and sum(map(len, layers)) > 0


def test_tied_weights_and_layers_that_are_called_differently_one_at_a_time(windows, gemma):
    other = copy.deepcopy(gemma)
    codes, figures = quantize(gemma, windows, QuantizeSettings(budget=1.2))
    same, told = quantize(other, windows, QuantizeSettings(budget=1.2), device=torch.device("cpu"))
    assert replace(told, streamed=False) == figures
    assert all(torch.equal(same[name].packed(), codes[name].packed()) for name in codes)


def test_an_outlier_is_found(windows):
    """The model stays the same, but one value in each block of one weight dwarfs the others."""
    small, name = model(), "model.layers.0.mlp.down_proj"
    small.model.layers[0].mlp.up_proj.weight.data[::64] /= 40
    small.model.layers[0].mlp.down_proj.weight.data[:, ::64] *= 40
    _, figures = quantize(small, windows, QuantizeSettings(budget=1.35))
    assert max(figures.projections, key=lambda one: one.nats / one.plain_bytes).name == name
    assert of(figures, name).bits == 16
    assert figures.divergence < 0.2 * figures.plain_divergence


def test_uneven_widths_stay_and_say_so(windows):
    codes, figures = quantize(model(intermediate_size=100), windows, QuantizeSettings(budget=1.0))
    down = of(figures, "model.layers.0.mlp.down_proj")
    assert (down.bits, down.bytes, down.note) == (16, 2 * 64 * 100, "its width 100 is no multiple of 64")
    assert down.name not in codes and figures.ratio == 1.0


def test_without_text_to_measure_on(windows):
    from hasten.quant.calibration import Windows

    _, figures = quantize(model(), Windows(windows.calibration, ()), QuantizeSettings())
    assert figures.divergence is None and figures.plain_divergence is None and figures.heldout_tokens == 0


def test_all_figures_as_plain_values(quantized):
    told = quantized(1.1, 16)[2].as_dict()
    assert told["ratio"] <= 1.1 and told["projections"][0]["kind"] == "self_attn.q_proj"
    assert told["calibration_tokens"] == 384 and told["heldout_tokens"] == 192


def test_predictions_that_are_not_finite(windows):
    small = model()
    small.model.layers[0].input_layernorm.weight.data[3] = torch.inf
    with pytest.raises(ModelError) as caught:
        quantize(small, windows, QuantizeSettings())
    assert "its predictions are not finite" in str(caught.value) and "Check its weights" in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"bits": 8}, ["bits: 8.", "NF4, which has 4 bits", "Leave it at 4."]),
        ({"budget": 0.9}, ["budget: 0.9.", "from 1.0", "1.10 is a good beginning."]),
        ({"budget": 5.0}, ["budget: 5.0.", "to 4.0"]),
        ({"budget": float("nan")}, ["budget: nan."]),
    ],
)
def test_settings_that_cannot_be(fields, parts):
    with pytest.raises(ConfigError) as caught:
        QuantizeSettings(**fields)
    for part in parts:
        assert part in str(caught.value)


def test_what_a_weight_that_matters_becomes():
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(upgraded(weight, 16, torch.bfloat16), weight.bfloat16().float())
    eight = upgraded(weight, 8, torch.bfloat16)
    assert (eight - weight).abs().max() <= weight.abs().max() / 127 / 2 * 1.001
    assert (upgraded_bytes((6, 64), 16), upgraded_bytes((6, 64), 8)) == (768, 384 + 24)
    assert upgraded(torch.zeros(2, 64), 8, torch.bfloat16).isfinite().all()


def test_the_16_bit_type_is_the_models_own():
    small = model()
    assert storage_dtype(small) == torch.bfloat16
    small.config.dtype = torch.float16
    assert storage_dtype(small) == torch.float16
