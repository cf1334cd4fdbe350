"""4-bit weights inside the fast layers: the same numbers as through bitsandbytes, trained and generated with."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from hasten.blocks.apply import apply, kept_values, refused_in_training, remove, set_policies, widths_of
from hasten.blocks.projections import Compute8
from hasten.blocks.quantized import Workspace
from hasten.policies import POLICIES
from support import tiny
from support.as_good import require_as_good

bitsandbytes = pytest.importorskip("bitsandbytes", reason="4-bit weights are bitsandbytes'")


def quantize(model, *, nested=True, keep=()):
    """Every linear layer of the decoder but those named in 4 bits; returns the model."""
    for name, module in list(model.named_modules()):
        if type(module) is not nn.Linear or name == "lm_head" or any(part in name for part in keep):
            continue
        made = bitsandbytes.nn.Linear4bit(
            module.in_features,
            module.out_features,
            bias=module.bias is not None,
            compute_dtype=module.weight.dtype,
            compress_statistics=nested,
            quant_type="nf4",
        )
        made.weight = bitsandbytes.nn.Params4bit(
            module.weight.data.clone(), requires_grad=False, compress_statistics=nested, quant_type="nf4", module=made
        ).to(module.weight.device)
        made.support_avx512bf16_for_cpu = False
        if module.bias is not None:
            made.bias = module.bias
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, made.requires_grad_(False))
    model.is_loaded_in_4bit = True
    return model


def plain_of(model):
    """The same weights in float64 without 4 bits: what both are measured against."""
    exact = copy.deepcopy(model)
    for name, module in list(exact.named_modules()):
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            weight = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            made = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
            made.weight.data = weight
            if module.bias is not None:
                made.bias.data = module.bias.data
            parent, _, own = name.rpartition(".")
            setattr(exact.get_submodule(parent), own, made.requires_grad_(False))
    return exact


def adapted(model):
    """LoRA on every layer, the same values for every model of one seed."""
    torch.manual_seed(0)
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, config)
    torch.manual_seed(1)
    for name, parameter in sorted(model.named_parameters()):
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, dtype=torch.float64).mul(0.1).to(parameter)
    return model.train()


def three(**changes):
    """Fast, plain and exact, with one set of values."""
    base = quantize(tiny.llama(**{"hidden_size": 64, "intermediate_size": 128}), **changes)
    exact = adapted(plain_of(base)).double()
    fast, plain = adapted(copy.deepcopy(base)), adapted(base)
    applied = apply(fast)
    assert applied.complete, applied.line()
    return fast, plain, exact


def results(model, length=24):
    ids = torch.randint(3, 128, (2, length), generator=torch.Generator().manual_seed(2))
    model.zero_grad()
    out = model(input_ids=ids, labels=ids, use_cache=False)
    out.loss.backward()
    gradients = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    return {"loss": out.loss.detach(), "logits": out.logits.detach(), **gradients}


def require_fast(fast, plain, exact):
    require_as_good(results(fast), results(plain), results(exact))
    assert refused_in_training(fast) == set()


@pytest.mark.parametrize("nested", [True, False])
def test_logits_and_gradients(nested):
    require_fast(*three(nested=nested))


def test_4_bit_and_16_bit_weights_in_one_group():
    require_fast(*three(keep=("k_proj", "layers.1.mlp.up_proj")))


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy(policy):
    fast, _, _ = three()
    kept = results(fast)
    set_policies(fast, [policy] * 2)
    for name, wanted in results(fast).items():
        assert torch.equal(wanted, kept[name]), name


def test_two_adapters_at_once_and_another_between_forward_and_backward():
    fast, plain, exact = three()
    for model in (fast, plain, exact):
        model.add_adapter("second", LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "up_proj"]))
        torch.manual_seed(3)
        for name, parameter in sorted(model.named_parameters()):
            if "second" in name:
                parameter.data = torch.randn(parameter.shape, dtype=torch.float64).mul(0.1).to(parameter)
    for names in (["default", "second"], ["second"], ["default"]):
        for model in (fast, plain, exact):
            model.base_model.set_adapter(names)
        require_fast(fast, plain, exact)


def test_generation_and_removal():
    fast, plain, _ = three()
    ids = torch.randint(3, 128, (1, 5), generator=torch.Generator().manual_seed(4))
    results(fast)
    generated = [
        model.eval().generate(input_ids=ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
        for model in (fast, plain)
    ]
    assert torch.equal(generated[0], generated[1])
    remove(fast)
    for name, wanted in results(plain.train()).items():
        torch.testing.assert_close(results(fast.train())[name], wanted)


def test_nothing_of_16_bits_is_kept():
    """The one buffer is as large as the largest group, whatever the number of layers."""
    fast, _, _ = three()
    results(fast)
    groups = [group for layer in fast.get_base_model().model.layers for group in layer.hasten_fast.groups()]
    spaces = {id(group.workspace): group.workspace for group in groups}
    (space,) = spaces.values()
    largest = max((operand.rows[-1].stop, operand.width + operand.widened) for operand in (g.in_use for g in groups))
    assert space._memory.numel() == largest[0] * largest[1]
    assert widths_of(fast).mlp == 128


def test_memory_is_taken_anew_where_it_does_not_fit():
    space = Workspace()
    first = space.take(2, 3, torch.float32, torch.device("cpu"))
    assert space.take(3, 2, torch.float32, torch.device("cpu")).data_ptr() == first.data_ptr()
    assert space.take(4, 4, torch.float32, torch.device("cpu")).shape == (4, 4)
    assert space.take(1, 1, torch.float64, torch.device("cpu")).dtype == torch.float64


def test_other_4_bit_layouts_run_plain_and_say_so():
    base = quantize(tiny.llama())
    layer = base.model.layers[0].self_attn.q_proj
    layer.weight = bitsandbytes.nn.Params4bit(
        torch.randn(64, 64), requires_grad=False, quant_type="fp4", module=layer
    ).to("cpu")
    applied = apply(adapted(base))
    assert not applied.complete
    assert "Linear4bit weights" in applied.line()


def test_8_bit_products_of_4_bit_weights():
    """The same numbers as 8-bit products of the 16-bit values that the 4-bit weights stand for."""
    model = adapted(quantize(tiny.llama())).train()
    wide = copy.deepcopy(model)
    for name, module in list(wide.named_modules()):
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            made = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
            made.weight.data = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            parent, _, own = name.rpartition(".")
            setattr(wide.get_submodule(parent), own, made.requires_grad_(False))
    ids = torch.randint(0, 100, (2, 24))
    results = []
    for one in (model, wide):
        applied = apply(one, compute8=Compute8())
        assert applied.layers == applied.of and not applied.refused_8
        loss = one(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        with torch.no_grad():
            unlearnt = one(input_ids=ids, labels=ids, use_cache=False).loss
        results.append((loss, unlearnt, {name: part.grad for name, part in one.named_parameters() if "lora" in name}))
    (loss, unlearnt, own), (wanted, wanted_unlearnt, theirs) = results
    torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=0)  # a value between two steps of 8 bits may take either
    torch.testing.assert_close(unlearnt, wanted_unlearnt)  # no 8-bit values here
    assert loss != unlearnt
    for name, gradient in own.items():
        assert (gradient - theirs[name]).norm() <= 0.05 * theirs[name].norm(), name
    assert kept_values(model) == (0, 0, 0) < kept_values(wide)
