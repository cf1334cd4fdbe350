"""Fast layers compute what transformers' own modules compute: logits, loss, every gradient, generation.

Against the same model in float64, the fast float32 model is at most 1.2 times as far off as transformers' own float32
one, or within what rounding in another order can do; pooled over all values of a kind.
"""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F
from transformers import CONFIG_MAPPING

from hasten.blocks.apply import apply, gives_loss, refused_in_training, remove, set_policies
from hasten.blocks.layer import FastLayer
from hasten.blocks.packed_attention import packed_attention
from hasten.data.packing import PackedCollator
from hasten.families.base import all_families, family_of
from hasten.policies import POLICIES
from support import tiny
from support.as_good import require_as_good

FAMILIES = [family for family in all_families() if family.blocks]
LENGTHS = (9, 1, 14, 6)


def model_of(family, **changes):
    config = CONFIG_MAPPING[family.model_types[0]](**{**family.tiny, **changes})
    model = tiny.of_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:  # zeros and ones would hide mistakes
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model.train()


def adapted(model, family, **changes):
    torch.manual_seed(3)
    fields = {"r": 5, "lora_alpha": 7, "target_modules": list(family.lora_targets), **changes}
    peft = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **fields))
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    return peft.train()


def padded_batch(vocab=128):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, vocab, (3, 17), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, 11:], mask[1, 1:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100), "use_cache": False}


def packed_batch(vocab=128):
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in LENGTHS:
        ids = torch.randint(3, vocab, (length,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": [-100, *ids[1:]]})
    batch = PackedCollator()(rows)
    del batch["counts"]
    return batch


def padded_results(model):
    model.zero_grad()
    out = model(**padded_batch())
    out.loss.backward()
    return collected(model, out.logits, out.loss)


def packed_results(model):
    """Loss through the fused head where the model has it, through logits otherwise."""
    model.zero_grad()
    batch = packed_batch()
    labels = batch.pop("labels")
    targets = labels[0, batch["logits_to_keep"] + 1]
    with packed_attention(model):
        if gives_loss(model):
            out = model(**batch, hasten_targets=targets, use_cache=False)
            loss = out.loss
        else:
            out = model(**batch, use_cache=False)
            loss = F.cross_entropy(out.logits[0], targets, reduction="sum")
        loss.backward()
    return collected(model, None, loss)


def collected(model, logits, loss):
    found = {"loss": loss.detach()} if logits is None else {"loss": loss.detach(), "logits": logits.detach()}
    gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert all(gradient is not None for gradient in gradients.values())
    return found | gradients


def require_fast(model, family):
    layers = [module for module in model.modules() if isinstance(module, FastLayer)]
    assert len(layers) == family.tiny["num_hidden_layers"]
    assert refused_in_training(model) == set()
    assert gives_loss(model)


def three(make):
    """The same model fast, plain, and plain in float64."""
    plain = make()
    fast, truth = copy.deepcopy(plain), copy.deepcopy(plain).double()
    applied = apply(fast)
    assert applied.complete, applied.line()
    return fast, plain, truth


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("results", [padded_results, packed_results])
def test_lora_as_transformers(family, results):
    fast, plain, truth = three(lambda: adapted(model_of(family), family))
    require_as_good(results(fast), results(plain), results(truth))
    require_fast(fast, family)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_padded_rows_as_transformers(family):
    fast, plain, truth = three(lambda: model_of(family))
    require_as_good(*(padded_results(model) for model in (fast, plain, truth)))
    require_fast(fast, family)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_packed_rows_as_transformers(family):
    fast, plain, truth = three(lambda: model_of(family))
    require_as_good(*(packed_results(model) for model in (fast, plain, truth)))
    require_fast(fast, family)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_every_policy_gives_the_same_numbers(policy, lora):
    family = next(family for family in FAMILIES if family.name == "Qwen3")
    model = adapted(model_of(family), family) if lora else model_of(family)
    apply(model)
    kept = packed_results(model)
    set_policies(model, [policy] * family.tiny["num_hidden_layers"])
    made_again = packed_results(model)
    assert all(torch.equal(kept[name], made_again[name]) for name in kept)
    require_fast(model, family)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_generation_with_a_cache_is_unchanged(family):
    fast, plain, _ = three(lambda: adapted(model_of(family), family))
    prompt = torch.tensor([[5, 9, 20, 31]])
    for model in (fast, plain):
        model.eval()
    answers = [
        model.generate(input_ids=prompt, max_new_tokens=8, do_sample=False, pad_token_id=0) for model in (fast, plain)
    ]
    assert torch.equal(*answers)
    with torch.no_grad():
        logits = [model(input_ids=prompt, use_cache=use).logits for model in (fast, plain) for use in (True, False)]
    for other in logits[1:]:
        torch.testing.assert_close(logits[0], other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_removing_gives_the_plain_model_back(family):
    fast, plain, _ = three(lambda: adapted(model_of(family), family))
    packed_results(fast)
    remove(fast)
    assert not any(isinstance(module, FastLayer) for module in fast.modules())
    assert [type(module) for module in fast.modules()] == [type(module) for module in plain.modules()]
    mine, theirs = padded_results(fast), padded_results(plain)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert all(parameter.is_contiguous() for parameter in fast.parameters())
    storages = {parameter.untyped_storage().data_ptr() for parameter in fast.parameters()}
    assert len(storages) == len(list(fast.parameters()))


@pytest.mark.parametrize(
    "changes",
    [
        {"sliding_window": 5},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    ],
    ids=["window", "partial rotary"],
)
@pytest.mark.parametrize("results", [padded_results, packed_results])
def test_what_phi3_has_beyond_llama(changes, results):
    family = family_of("phi3")
    fast, plain, truth = three(lambda: adapted(model_of(family, **changes), family))
    require_as_good(results(fast), results(plain), results(truth))
    require_fast(fast, family)


def test_dropout_on_the_residual_path_runs_plain():
    family = family_of("phi3")
    model = adapted(model_of(family, resid_pdrop=0.1), family)
    apply(model)
    with pytest.warns(UserWarning, match="dropout on the residual path"):
        padded_results(model.train())
    assert refused_in_training(model) == {"dropout on the residual path"}
