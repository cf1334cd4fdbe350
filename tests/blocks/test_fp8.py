"""8-bit products of frozen projections: what they compute, what stays in 16 bits, and nothing stale."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from hasten.blocks.apply import apply, kept_values, remove, set_policies
from hasten.blocks.fp8 import Operand8
from hasten.blocks.projections import Compute8, ProjectionGroup
from hasten.kernels.fp8 import op as fp8
from support import tiny

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(32, 48), nn.Linear(32, 16, bias=False)


def group(*, turned=True, adapters=True):
    torch.manual_seed(0)
    model = Two().requires_grad_(False)
    if adapters:
        model = get_peft_model(model, LoraConfig(r=3, lora_alpha=5, target_modules=["a", "b"])).get_base_model()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter)
    return model, ProjectionGroup((model.a, model.b), compute8=Compute8(turned))


def rounded(x, factor=None):
    """What a product in 8 bits reads."""
    x8, scale = fp8.quantize_rows(x.detach(), factor)
    return x8.float() * scale


def weights_of(model):
    bases = [getattr(part, "base_layer", part) for part in (model.a, model.b)]
    return torch.cat([base.weight.detach() for base in bases])


@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("adapters", [True, False])
def test_what_is_computed(turned, adapters):
    model, own = group(turned=turned, adapters=adapters)
    assert own.refusal() is None
    operand = own.read(torch.float32)
    assert isinstance(operand, Operand8) and (operand.weights8.turned_KN is not None) == turned
    x, dy = torch.randn(5, 32), torch.randn(5, 64)
    w = rounded(weights_of(model))
    _, scale = fp8.quantize_rows(weights_of(model))
    bias = torch.cat((getattr(model.a, "base_layer", model.a).bias.detach(), torch.zeros(16)))
    y, dx, dxa = rounded(x) @ w.t() + bias, rounded(dy, scale[:, 0]) @ (w / scale), torch.zeros(5, 0)
    if adapters:
        parts = [(part.lora_A["default"].weight, part.lora_B["default"].weight) for part in (model.a, model.b)]
        y = y + torch.cat([(x @ A.t()) @ B.t() * 5 / 3 for A, B in parts], dim=1)
        dxa = torch.cat([dy[:, :48] @ parts[0][1], dy[:, 48:] @ parts[1][1]], dim=1)
        dx = dx + (dxa[:, :3] @ parts[0][0] + dxa[:, 3:] @ parts[1][0]) * 5 / 3
    with torch.no_grad():
        buffer = operand.input_buffer(5, x)
        buffer[:, :32] = x
        torch.testing.assert_close(operand.forward(buffer), y)
        given = operand.new_eight(5, x)
        for target, made in zip(given, fp8.quantize_rows(x), strict=True):
            target.view(torch.uint8).copy_(made.view(torch.uint8))
        torch.testing.assert_close(operand.forward(buffer, given), y)
        found, found_dxa = operand.input_gradient(dy)
        torch.testing.assert_close(found, dx)
        torch.testing.assert_close(found_dxa[:, : dxa.shape[1]], dxa.detach())
        alone, again = operand.input_gradient(dy, need_dx=False)
        assert alone is None and torch.equal(again, found_dxa)
        gradients = operand.parameter_gradients(dy, x, buffer[:, 32:], found_dxa)
    assert [gradient is not None for gradient in gradients] == [part.requires_grad for part in operand.learnt]


def test_copies_do_not_outlive_their_weights():
    model, own = group()
    assert own.refusal() is None
    first = own.read(torch.float32)
    assert own.refusal() is None and own.read(torch.float32).weights8 is first.weights8
    with torch.no_grad():
        model.a.base_layer.weight.mul_(3.0)
    assert own.refusal() is None
    second = own.read(torch.float32)
    torch.testing.assert_close(second.weights8.scale_N[:48], 3.0 * first.weights8.scale_N[:48])
    x = torch.randn(2, 32)
    buffer = second.input_buffer(2, x)
    buffer[:, :32] = x
    with_factors = second.forward(buffer)
    model.a.base_layer.weight.requires_grad_()
    assert own.refusal() is None
    trained = own.read(torch.float32)
    assert not isinstance(trained, Operand8)
    buffer = trained.input_buffer(2, x)
    buffer[:, :32] = x
    assert (trained.forward(buffer) - with_factors).norm() < 0.1 * with_factors.norm()


def test_odd_widths_stay_in_16_bits():
    odd = ProjectionGroup((nn.Linear(24, 32).requires_grad_(False),), compute8=Compute8())
    assert odd.why_not_8() == "widths are no multiples of 16 (24)"
    assert odd.refusal() is None and not isinstance(odd.read(torch.float32), Operand8)


def adapted():
    torch.manual_seed(0)
    model = get_peft_model(tiny.llama(), LoraConfig(r=4, target_modules=TARGETS)).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    return model


def learnt(model, ids):
    model.zero_grad()
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    return loss.item(), {name: part.grad.clone() for name, part in model.named_parameters() if part.grad is not None}


@pytest.mark.parametrize("policy", ["keep", "elementwise", "recompute_mlp", "recompute"])
def test_a_model_in_8_bits_learns_nearly_the_same(policy):
    plain = adapted()
    eight = copy.deepcopy(plain)
    ids = torch.randint(0, 100, (2, 24))
    wanted, gradients = learnt(plain, ids)
    applied = apply(eight, compute8=Compute8())
    assert applied.complete and not applied.refused_8
    frozen = sum(part.numel() for name, part in plain.named_parameters() if "base_layer" in name)
    assert kept_values(eight) == (frozen, 0, 0)
    kept, first = learnt(eight, ids)
    set_policies(eight, [policy] * applied.of)
    loss, own = learnt(eight, ids)
    assert loss == kept and all(torch.equal(own[name], first[name]) for name in own)  # policies give the same numbers
    assert loss == pytest.approx(wanted, rel=1e-2)
    for (
        name,
        gradient,
    ) in gradients.items():  # every product of two rounded operands loses 2^-4 at most, some layers deep
        assert (own[name] - gradient).norm() < 0.25 * gradient.norm(), name
    with torch.no_grad():  # nothing is learnt from it: the weights as they are kept
        torch.testing.assert_close(eight(input_ids=ids, labels=ids, use_cache=False).loss.item(), wanted)
    remove(eight)
    assert learnt(eight, ids)[0] == wanted


def test_copies_are_made_once_whatever_mode_the_model_is_in():
    model = adapted()
    apply(model, compute8=Compute8())
    groups = [group for layer in model.get_base_model().model.layers for group in layer.hasten_fast.groups()]
    ids = torch.randint(0, 100, (2, 24))
    learnt(model, ids)
    made = [group.in_use.weights8 for group in groups]
    model.eval()
    with torch.no_grad(), model.disable_adapter():
        model(input_ids=ids, use_cache=False)
    assert all(group.in_use.weights8 is one for group, one in zip(groups, made, strict=True))
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    model.train()
    learnt(model, ids)
    assert all(group.in_use.weights8 is one for group, one in zip(groups, made, strict=True))
    before = [group.in_use for group in groups]
    model.eval()
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    model.train()
    learnt(model, ids)  # an evaluation alone changes nothing that a recording depends on
    assert all(group.in_use is one for group, one in zip(groups, before, strict=True))


def trained(model, ids, policy=None):
    if policy is not None:
        set_policies(model, [policy] * len(model.model.layers))
    return learnt(model, ids)


@pytest.mark.parametrize("policy", ["keep", "elementwise", "recompute_mlp", "recompute"])
def test_trained_weights_in_8_bits_learn_nearly_the_same(policy):
    torch.manual_seed(0)
    plain = tiny.llama().train()
    eight = copy.deepcopy(plain)
    ids = torch.randint(0, 100, (2, 24))
    wanted, gradients = learnt(plain, ids)
    applied = apply(eight, compute8=Compute8())
    assert applied.complete and not applied.refused_8
    linear = sum(part.numel() for name, part in plain.named_parameters() if "proj" in name and name.endswith("weight"))
    assert kept_values(eight) == (0, 0, linear)
    kept, first = trained(eight, ids)
    loss, own = trained(eight, ids, policy)
    assert loss == kept and loss != wanted and all(torch.equal(own[name], first[name]) for name in own)
    assert own.keys() == gradients.keys() and loss == pytest.approx(wanted, rel=1e-2)
    for name, gradient in gradients.items():
        assert (own[name] - gradient).norm() < 0.25 * gradient.norm(), name
    with torch.no_grad():
        torch.testing.assert_close(eight(input_ids=ids, labels=ids, use_cache=False).loss.item(), wanted)
    remove(eight)
    assert learnt(eight, ids)[0] == wanted


def test_trained_weights_are_read_as_they_are_in_every_forward():
    model, own = group(adapters=False)
    for part in (model.a, model.b):
        part.weight.requires_grad_()
    assert own.refusal() is None
    x, dy = torch.randn(5, 32), torch.randn(5, 64)
    for change in (1.0, 3.0):
        with torch.no_grad():
            model.b.weight.mul_(change)
        assert own.refusal() is None
        operand = own.read(torch.float32)
        w, (_, scale) = rounded(weights_of(model)), fp8.quantize_rows(weights_of(model))
        with torch.no_grad():
            buffer = operand.input_buffer(5, x)
            buffer[:] = x
            y = rounded(x) @ w.t() + torch.cat((model.a.bias, torch.zeros(16)))
            torch.testing.assert_close(operand.forward(buffer), y)
            torch.testing.assert_close(operand.input_gradient(dy)[0], rounded(dy, scale[:, 0]) @ (w / scale))
            plain = operand.without_gradients()
            torch.testing.assert_close(plain.forward(buffer), x @ weights_of(model).t() + y - rounded(x) @ w.t())
        weights = operand.parameter_gradients(dy, x, buffer[:, 32:], dy[:, :0])[:2]
        torch.testing.assert_close(torch.cat(weights), dy.t() @ x)  # a product of what is not rounded


def test_computed_in_another_dtype_than_kept():
    model, own = group(adapters=False)
    model.requires_grad_()
    assert own.refusal() is None
    operand = own.read(torch.bfloat16)
    x = torch.randn(5, 32).bfloat16()
    with torch.no_grad():
        y, plain = operand.forward(x.clone()), operand.without_gradients().forward(x.clone())
    assert y.dtype == plain.dtype == torch.bfloat16 and (y - plain).norm() < 0.1 * plain.norm()


def test_a_group_of_which_a_part_is_trained_stays_in_16_bits():
    model, own = group()
    model.a.base_layer.weight.requires_grad_()
    reason = "some of its weights are trained, and others or adapters beside them"
    assert own.why_not_8() == reason and own.refusal() is None and not isinstance(own.read(torch.float32), Operand8)
    alone, own = group(adapters=False)
    alone.a.weight.requires_grad_()
    assert own.why_not_8() == reason
    alone.b.weight.requires_grad_()
    assert own.why_not_8() is None
