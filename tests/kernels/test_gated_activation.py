"""gated_activation keeps its promise for every activation, shape and dtype, in place too."""

import pytest
import torch
from torch.nn import functional as F

from hasten.errors import ConfigError
from hasten.kernels.gated_activation import gated_activation, op
from support.promise import ROUNDING, enough, gradients_of, require_promise

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
PLAIN = {"silu": F.silu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}


def made(device, dtype, *shape, seed=0):
    return (2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(device, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("shape", [(3, 7), (2, 3, 65), (2, 1030), (0, 8)])
def test_output_and_gradients(device, impl, dtype, kind, shape):
    draws = [
        (made(device, dtype, *shape, seed=seed), made(device, dtype, *shape, seed=seed + 1))
        for seed in range(0, 2 * enough(shape), 2)
    ]
    require_promise(lambda g, u: gated_activation(g, u, kind, impl=impl), lambda g, u: PLAIN[kind](g) * u, *draws)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_single_value(device, impl, dtype):
    inputs = made(device, dtype, 1, 1), made(device, dtype, 1, 1, seed=1)
    own = gradients_of(lambda g, u: gated_activation(g, u, "silu", impl=impl), inputs)
    torch.testing.assert_close(own, gradients_of(lambda g, u: F.silu(g) * u, inputs))


@pytest.mark.parametrize("kind", PLAIN)
def test_large_and_special_values(device, impl, kind):
    gate = torch.tensor([[-1e4, -90.0, -1.0, 0.0, 1.0, 90.0, 1e4]], device=device)
    up = torch.full_like(gate, 2.0)
    torch.testing.assert_close(gated_activation(gate, up, kind, impl=impl), PLAIN[kind](gate) * up)
    leaf = gate.clone().requires_grad_()
    wanted = torch.autograd.grad((PLAIN[kind](leaf) * up).sum(), leaf)[0]
    dgate, _ = op.backward(torch.ones_like(gate), gate, up, kind, impl=impl)
    torch.testing.assert_close(dgate, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", PLAIN)
def test_in_place_over_a_shared_buffer_with_the_product_again(device, impl, kind):
    both, da = made(device, torch.float32, 5, 2 * 33), made(device, torch.float32, 5, 40, seed=1)[:, :33]
    gate, up = both[:, :33], both[:, 33:]
    product = op.forward(gate, up, kind, impl=impl)
    apart = op.backward(da, gate, up, kind, impl=impl)
    again = torch.full((5, 50), float("nan"), device=device)
    op.backward(da, gate, up, kind, dgate=gate, dup=up, out=again[:, :33], impl=impl)
    assert torch.equal(both, torch.cat(apart, dim=1))
    assert torch.equal(again[:, :33], product)
    assert again[:, 33:].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "columns"),
    [((1, 5), 16), ((1, 5), 24), ((5, 70), 24), ((20, 150), 16), ((35, 70), 16), ((35, 70), 64)],
)
def test_an_adapters_part_is_added_first(device, impl, dtype, shape, columns):
    gate, up, da = (made(device, dtype, *shape, seed=seed) for seed in range(3))
    lora = (
        made(device, dtype, shape[0], columns + 3, seed=3)[:, :columns],
        made(device, dtype, columns, shape[1], seed=4),
    )
    out = torch.empty_like(gate)
    found = op.backward(da, gate, up, "silu", out=out, lora=lora, impl=impl)
    truth = op.backward(
        da.double() + lora[0].double() @ lora[1].double(), gate.double(), up.double(), "silu", impl="torch"
    )
    apart = op.backward(torch.addmm(da, *lora), gate, up, "silu", impl="torch")
    for own, composed, wanted in zip(found, apart, truth, strict=True):
        error, allowed = ((part.double() - wanted).norm() for part in (own, composed))
        order = columns**0.5 * 2.0**-24  # the sum over the adapter's columns may be made in any order
        assert error <= max(1.2 * allowed, (ROUNDING[dtype] + order) * wanted.norm())
    assert torch.equal(out, op.forward(gate, up, "silu", impl=impl))


def test_an_unknown_activation_is_refused():
    with pytest.raises(ConfigError, match="'gelu_tan'.*Allowed: silu, gelu, gelu_tanh.*gelu_tanh"):
        gated_activation(torch.ones(1, 2), torch.ones(1, 2), "gelu_tan")


def test_one_node_for_compile(device):
    gate, up = made(device, torch.float32, 4, 32).requires_grad_(), made(device, torch.float32, 4, 32, seed=1)
    torch.library.opcheck(torch.ops.hasten.gated_activation.default, (gate, up, "silu", "torch"))
    compiled = torch.compile(lambda g: gated_activation(g, up, impl="torch") * 2, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(gate), gated_activation(gate, up, impl="torch") * 2)
