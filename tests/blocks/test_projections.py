"""Projections as one product: the same numbers, the same parameters, and nothing stale."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from hasten.blocks.operand import product
from hasten.blocks.projections import ProjectionGroup, active_factors, base_of, refusal_of


class Two(nn.Module):
    def __init__(self, bias=True):
        super().__init__()
        self.a, self.b = nn.Linear(10, 6, bias=bias), nn.Linear(10, 3, bias=False)

    def forward(self, x):
        return torch.cat((self.a(x), self.b(x)), dim=-1)


def adapted(targets=("a", "b"), r=3, **changes):
    torch.manual_seed(0)
    model = get_peft_model(Two(), LoraConfig(r=r, lora_alpha=5, target_modules=list(targets), **changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    return model


def group_of(model):
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return ProjectionGroup((base.a, base.b))


def read(group, dtype=torch.float32):
    assert group.refusal() is None
    return group.read(dtype)


def by_hand(group, x, dy):
    """Output, dx and every parameter's gradient through the group."""
    operand = read(group)
    with torch.no_grad():
        buffer = operand.input_buffer(len(x), x)
        buffer[:, : operand.width] = x
        y = operand.forward(buffer)
        dx, dxa = operand.input_gradient(dy)
        gradients = operand.parameter_gradients(dy, x, buffer[:, operand.width :], dxa)
    assert len(gradients) == len(operand.learnt)
    return y, dx, {id(p): g for p, g in zip(operand.learnt, gradients, strict=True) if g is not None}


def require_equal(model, group, seed=1):
    torch.manual_seed(seed)
    x, dy = torch.randn(4, 10), torch.randn(4, 9)
    y, dx, gradients = by_hand(group, x, dy)
    leaf = x.clone().requires_grad_()
    wanted = model(leaf)
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    theirs = torch.autograd.grad(wanted, [leaf, *learnt], dy, allow_unused=True)
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(dx, theirs[0])
    for parameter, gradient in zip(learnt, theirs[1:], strict=True):
        if gradient is None:
            assert id(parameter) not in gradients
        else:
            torch.testing.assert_close(gradients[id(parameter)], gradient)


@pytest.mark.parametrize("targets", [("a", "b"), ("b",), ("a",)])
@pytest.mark.parametrize("r", [3, 64, 70])
def test_adapters_inside_the_product(targets, r):
    model = adapted(targets, r)
    require_equal(model, group_of(model))


def test_plain_projections_with_trained_weights():
    torch.manual_seed(0)
    model = Two()
    group = group_of(model)
    require_equal(model, group)
    storages = {base_of(module).weight.untyped_storage().data_ptr() for module in group.modules}
    assert len(storages) == 1


def test_a_trained_base_under_adapters():
    model = adapted()
    for parameter in model.parameters():
        parameter.requires_grad_()
    require_equal(model, group_of(model))


def test_weights_keep_names_values_and_identity():
    model = adapted()
    before = {name: parameter for name, parameter in model.named_parameters()}
    values = copy.deepcopy(model.state_dict())
    group = group_of(model)
    read(group)
    assert {name: parameter for name, parameter in model.named_parameters()} == before
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    group.release()
    assert all(parameter.is_contiguous() for parameter in model.parameters())
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())


def test_factors_are_read_anew_every_time():
    """Optimizers that write through raw pointers leave no trace: nothing may be remembered."""
    model = adapted()
    group = group_of(model)
    require_equal(model, group)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter.data += 0.5
    require_equal(model, group)


def test_another_adapter_leaves_no_columns_behind():
    model = adapted(r=5)
    group = group_of(model)
    require_equal(model, group)
    model.add_adapter("small", LoraConfig(r=2, lora_alpha=3, target_modules=["b"]))
    model.set_adapter("small")
    require_equal(model, group)
    with model.disable_adapter():
        require_equal(model, group)
    model.set_adapter("default")
    require_equal(model, group)


def test_a_backward_after_another_forward_has_its_own_factors():
    """A reference model's forward with another adapter may come between forward and backward."""
    model = adapted()
    group = group_of(model)
    operand = read(group)
    kept = operand.weight_NKP().clone(), operand.A_PK.clone()
    model.add_adapter("other", LoraConfig(r=3, lora_alpha=5, target_modules=["a", "b"], init_lora_weights=False))
    model.set_adapter("other")
    read(group)
    assert not torch.equal(operand.weight_NKP(), kept[0])
    group.rewrite(operand)
    assert torch.equal(operand.weight_NKP(), kept[0])
    assert torch.equal(operand.A_PK, kept[1])


def test_replaced_and_merged_weights_are_noticed():
    model = adapted()
    group = group_of(model)
    require_equal(model, group)
    base = model.get_base_model()
    base.a.base_layer.weight.data = torch.randn(6, 10)
    require_equal(model, group)
    model.merge_adapter()
    assert group.refusal() == "adapters merged into the weights"
    model.unmerge_adapter()
    assert group.refusal() is None
    require_equal(model, group)
    model.double()
    assert read(group, torch.float64).weight_NKP().dtype == torch.float64


def test_what_cannot_be_joined_says_why():
    assert refusal_of(nn.Linear(2, 2)) is None
    assert refusal_of(nn.Bilinear(2, 2, 2)) == "Bilinear weights"
    hooked = nn.Linear(2, 2)
    hooked.register_forward_hook(lambda *_: None)
    assert refusal_of(hooked) == "hooks on a projection"
    dropout = adapted(lora_dropout=0.1)
    assert refusal_of(dropout.get_base_model().a) == "LoRA dropout"
    assert refusal_of(dropout.eval().get_base_model().a) is None
    assert refusal_of(adapted(use_dora=True).get_base_model().a) == "a LoRA variant (DoRA or another)"
    assert refusal_of(adapted(lora_bias=True).get_base_model().a) == "LoRA bias"
    mixed = Two()
    mixed.b.bfloat16()
    assert group_of(mixed).refusal() == "projections of one input differ in dtype or device"


def test_active_factors_follow_the_adapter():
    model = adapted(("a",))
    base = model.get_base_model()
    ((A, B, scale),) = active_factors(base.a)  # noqa: N806
    assert (A.shape, B.shape, scale) == ((3, 10), (6, 3), 5 / 3)
    assert active_factors(base.b) == []
    with model.disable_adapter():
        assert active_factors(base.a) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_of_16_bit_values_are_summed_in_float32(dtype):
    left, right = torch.randn(5, 300).to(dtype), torch.randn(300, 7).to(dtype)
    found = product(left, right)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), left.double() @ right.double(), rtol=1e-5, atol=1e-4)


def test_one_table_for_all_groups_is_made_anew_when_something_changes(monkeypatch):
    from hasten.blocks import factors

    monkeypatch.setattr(factors, "choose", lambda impl, like: "triton")  # the table itself runs as plain torch here
    model = adapted(r=5)
    group = group_of(model)
    group.writer = factors.FactorWriter([group])
    runs = []

    def forward():
        table = group.writer._table
        with group.writer.forward():
            runs.append(table)
            require_equal(model, group)
            return id(group.in_use) in group.writer._written

    assert not forward()  # nothing to run yet: the group copies its own
    assert forward() and forward()
    assert runs[1] is runs[2] is not None
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter += 0.5
    assert forward()
    model.add_adapter("small", LoraConfig(r=2, lora_alpha=3, target_modules=["b"], init_lora_weights=False))
    model.set_adapter("small")
    assert not forward()
    assert forward()
    model.set_adapter("default")
    model.get_base_model().a.base_layer.weight.data = torch.randn(6, 10)
    assert not forward()
    old = group.in_use
    model.set_adapter("small")
    assert not forward()
    group.rewrite(old)  # a late backward leaves wider columns behind
    forward()
