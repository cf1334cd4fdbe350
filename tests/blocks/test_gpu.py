"""On a CUDA device: fast layers in 16 bit are right, packed and padded, with every policy, and repeat themselves."""

import copy
import statistics

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F
from transformers import LlamaConfig

from hasten.blocks.apply import apply, gives_loss, refused_in_training, set_policies
from hasten.blocks.packed_attention import packed_attention
from hasten.data.packing import PackedCollator
from hasten.policies import POLICIES
from hasten.training.determinism import deterministic
from support import tiny

pytestmark = pytest.mark.gpu
LENGTHS = (130, 1, 77, 304)
SIZES = {
    "vocab_size": 1031,
    "hidden_size": 256,
    "intermediate_size": 720,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}


def model_of(dtype, seed=0, **adapter):
    model = get_peft_model(
        tiny.of_config(LlamaConfig(**SIZES), seed=seed).to("cuda", dtype),
        LoraConfig(task_type="CAUSAL_LM", r=6, target_modules="all-linear", init_lora_weights=False, **adapter),
    )
    return model.train()


def as_trained(model):
    """As trainers run 16-bit models: adapters are kept in float32 and computed in 16 bit."""
    return torch.autocast("cuda", dtype=model.dtype, enabled=model.dtype in (torch.bfloat16, torch.float16))


def packed(model, seed=0, lengths=LENGTHS):
    generator = torch.Generator().manual_seed(seed + 1)
    rows = [
        {"input_ids": ids, "labels": ids}
        for ids in (torch.randint(3, 1000, (length,), generator=generator).tolist() for length in lengths)
    ]
    batch = {
        name: value.cuda() if isinstance(value, torch.Tensor) else value
        for name, value in PackedCollator()(rows).items()
    }
    labels = batch.pop("labels")
    del batch["counts"]
    model.zero_grad()
    with packed_attention(model), as_trained(model):
        targets = labels[0, batch["logits_to_keep"] + 1]
        if gives_loss(model):
            model(**batch, hasten_targets=targets).loss.backward()
        else:
            F.cross_entropy(model(**batch, use_cache=False).logits[0].float(), targets, reduction="sum").backward()
    return gradients(model)


def dense(model, length=256):
    ids = torch.randint(3, 1000, (2, length), generator=torch.Generator().manual_seed(2)).cuda()
    model.zero_grad()
    with as_trained(model):
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return gradients(model)


def gradients(model):
    return torch.cat([parameter.grad.double().flatten() for parameter in model.parameters() if parameter.requires_grad])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("length", [256, 100])
def test_16_bit_gradients_are_as_good_as_transformers(dtype, length):
    assert 0 < error_to_transformers(dtype, length) <= 1.2


def test_adapters_of_other_widths_in_other_layers():
    """The rows of their gradients differ in width, which attention's backward must not take from another layer."""
    assert 0 < error_to_transformers(torch.bfloat16, rank_pattern={"layers.1.self_attn.o_proj": 70}) <= 1.2


def error_to_transformers(dtype, length=256, **adapter):
    """Ours by theirs, against float64. Of one random model it is luck: the mean over eight is compared."""
    ratios = []
    for seed in range(8):
        plain = model_of(dtype, seed, **adapter)
        fast, truth = copy.deepcopy(plain), copy.deepcopy(plain).double()
        assert apply(fast).complete
        results = [dense(model, length) for model in (truth, fast, plain)]
        own, theirs = ((result - results[0]).norm() for result in results[1:])
        ratios.append(float(own / theirs))
        assert refused_in_training(fast) == set()
    return statistics.geometric_mean(ratios)


@pytest.mark.parametrize("kept", ["floats", "whole_numbers"])
def test_gradients_of_8_bit_weights_are_as_good_as_those_of_their_values(kept):
    from blocks import test_stored_in_8_bits as stored
    from blocks.test_quantized import adapted

    ratios = []
    for seed in range(6):
        base = tiny.of_config(LlamaConfig(**SIZES), seed=seed)
        base = stored.replace(base, getattr(stored, kept)).to("cuda")
        values = stored.replace(copy.deepcopy(base), lambda module: stored.plain(module).float())
        exact = adapted(copy.deepcopy(values)).float().cuda()
        fast, plain = adapted(base.to(torch.bfloat16)), adapted(values.to("cuda", torch.bfloat16))
        assert apply(fast).complete
        truth = packed(exact, seed)
        own, theirs = ((packed(model, seed) - truth).norm() for model in (fast, plain))
        ratios.append(float(own / theirs))
        assert refused_in_training(fast) == set()
    # The values themselves are rounded to bfloat16 by both, but once in `plain`, at every use in `fast`: the same.
    assert 0 < statistics.geometric_mean(ratios) <= 1.2


@pytest.mark.parametrize("turned", [True, False])
def test_8_bit_products_of_weights_kept_in_8_bits(turned):
    """The same gradients as of 8-bit copies of the same values."""
    from blocks import test_stored_in_8_bits as stored
    from blocks.test_quantized import adapted
    from hasten.blocks.projections import Compute8

    base = stored.replace(tiny.of_config(LlamaConfig(**SIZES)), stored.floats).cuda()
    copied = adapted(
        stored.replace(copy.deepcopy(base), lambda module: stored.plain(module).float()).to(torch.bfloat16)
    )
    kept = adapted(base.to(torch.bfloat16))
    found = []
    for model in (kept.cuda(), copied.cuda()):
        applied = apply(model, compute8=Compute8(turned=turned))
        assert applied.complete and not applied.refused_8
        found.append(packed(model))
    # Values are rounded to bfloat16 on the way to the copies, by 2^-9: the codes are the same (their steps are 2^-4),
    # scales differ by as much. So do activations, and where they are quantized one in thirty takes the next code: about
    # 1 % of each, and there are some twenty on the way. A wrong scale or layout is off by more than its whole size.
    assert (found[0] - found[1]).norm() <= 0.1 * found[1].norm()


@pytest.mark.parametrize("policy", POLICIES)
def test_8_bit_products_of_trained_weights(policy):
    """Gradients of all weights; every product of rounded values loses some 4 % at random, some twenty in a row."""
    from hasten.blocks.projections import Compute8

    plain = tiny.of_config(LlamaConfig(**SIZES)).cuda().train()
    eight = copy.deepcopy(plain).to(torch.bfloat16)
    truth = packed(plain)
    applied = apply(eight, compute8=Compute8())
    assert applied.complete and not applied.refused_8
    set_policies(eight, [policy] * 3)
    found = packed(eight)
    assert 0.01 * truth.norm() < (found - truth).norm() < 0.25 * truth.norm()
    with torch.no_grad():
        for name, parameter in eight.named_parameters():
            if "proj" in name:
                parameter.mul_(2.0)  # rounds nothing: other codes' scales, which must be made anew
    doubled = copy.deepcopy(plain)
    with torch.no_grad():
        for name, parameter in doubled.named_parameters():
            if "proj" in name:
                parameter.mul_(2.0)
    truth, found = packed(doubled), packed(eight)
    assert (found - truth).norm() < 0.25 * truth.norm()
    assert refused_in_training(eight) == set()


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_and_packing_agree(policy):
    model = model_of(torch.bfloat16)
    apply(model)
    kept = packed(model)
    set_policies(model, [policy] * 3)
    again = packed(model)
    # Same kernels, same values; attention's backward adds in any order, which is all that may differ.
    assert (again - kept).norm() <= 2.0**-8 * kept.norm()
    assert refused_in_training(model) == set()


@pytest.mark.parametrize("lengths", [LENGTHS, (256, 256)], ids=["ragged", "full rows"])
def test_packed_gradients_are_as_good_as_transformers(lengths):
    """In the mean over models: the error of a single one is chance, between 0.6 and 1.4 times that of the other."""
    ratios = []
    for seed in range(8):
        fast, plain, exact = model_of(torch.bfloat16, seed), model_of(torch.bfloat16, seed), model_of(torch.float32)
        for other in (exact, plain):
            other.load_state_dict(fast.state_dict())
        assert apply(fast).complete
        truth = packed(exact, seed, lengths)
        own, theirs = ((packed(model, seed, lengths) - truth).norm() for model in (fast, plain))
        ratios.append(float(own / theirs))
        assert refused_in_training(fast) == set()
    assert len(set(ratios)) == len(ratios)
    assert 0 < statistics.geometric_mean(ratios) <= 1.2


def test_4_bit_gradients_are_as_good_as_bitsandbytes():
    pytest.importorskip("bitsandbytes", reason="4-bit weights are bitsandbytes'")
    from blocks.test_quantized import adapted, plain_of, quantize

    ratios = []
    for seed in range(6):
        base = quantize(tiny.of_config(LlamaConfig(**SIZES), seed=seed).to("cuda", torch.bfloat16))
        exact = adapted(plain_of(base)).cuda().float()
        fast, plain = adapted(copy.deepcopy(base)), adapted(base)
        assert apply(fast).complete
        truth = packed(exact, seed)
        own, theirs = ((packed(model, seed) - truth).norm() for model in (fast, plain))
        ratios.append(float(own / theirs))
        assert refused_in_training(fast) == set()
    assert 0 < statistics.geometric_mean(ratios) <= 1.2


def test_deterministic_steps_repeat_bit_by_bit():
    model = model_of(torch.bfloat16)
    apply(model)
    with deterministic(True):
        runs = [packed(model) for _ in range(6)]
    assert all(torch.equal(run, runs[0]) for run in runs)


def test_factors_of_all_adapters_go_in_one_launch():
    model = model_of(torch.bfloat16)
    apply(model)
    writer = model.get_base_model().hasten_factors
    first = dense(model)
    assert len(writer._operands) == 3 * 4
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter *= 1.5
    changed = dense(model)
    assert not torch.equal(first, changed)
    writer._table, writer._operands = None, {}
    assert torch.equal(dense(model), changed)
