"""layer_norm keeps its promise in every shape, dtype and form."""

import math

import pytest
import torch
from torch.nn import functional as F

from hasten.errors import CapabilityError
from hasten.kernels.layer_norm import layer_norm, op
from support.promise import enough, gradients_of, require_promise

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def plain(x, weight, bias=None, eps=1e-5, residual=None):
    h = x if residual is None else x + residual
    y = F.layer_norm(h, h.shape[-1:], weight, bias, eps)
    return y if residual is None else (y, h)


def made(device, dtype, *shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def drawn(device, dtype, *shapes, count=1):
    """Sets of inputs of these shapes, each of its own seed."""
    return [
        [made(device, dtype, *shape, seed=len(shapes) * draw + place) for place, shape in enumerate(shapes)]
        for draw in range(count)
    ]


# The widest, which is two programs forward, at one dtype: the interpreter takes sums of two values one by one.
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [*((shape, dtype) for shape in [(3, 7), (2, 5, 64), (5, 100), (0, 16)] for dtype in DTYPES), ((3, 576), DTYPES[0])],
)
def test_output_and_gradients(device, impl, dtype, shape):
    draws = drawn(device, dtype, shape, shape[-1:], shape[-1:], count=enough(shape))
    require_promise(lambda x, w, b: layer_norm(x, w, b, impl=impl), plain, *draws)


def test_a_single_short_row(device, impl):
    (inputs,) = drawn(device, torch.float32, (1, 3), (3,), (3,))
    own = gradients_of(lambda x, w, b: layer_norm(x, w, b, impl=impl), inputs)
    torch.testing.assert_close(own, gradients_of(plain, inputs))


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_bias(device, impl, dtype):
    draws = drawn(device, dtype, (5, 48), (48,))
    require_promise(lambda x, w: layer_norm(x, w, impl=impl), plain, *draws)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_residual_is_added_first_and_its_gradient_last(device, impl, dtype):
    require_promise(
        lambda x, residual, w, b: layer_norm(x, w, b, 1e-3, residual=residual, impl=impl),
        lambda x, residual, w, b: plain(x, w, b, 1e-3, residual),
        *drawn(device, dtype, (5, 48), (5, 48), (48,), (48,)),
    )


def test_width_one_is_the_bias(device, impl):
    x = torch.tensor([[3.0], [-2.0]], device=device, requires_grad=True)
    y = layer_norm(x, torch.ones(1, device=device), torch.full((1,), 0.5, device=device), impl=impl)
    assert torch.equal(y, torch.full_like(x, 0.5))
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.zeros_like(x))


def test_the_spread_of_values_far_from_zero_is_kept(device, impl):
    # Every step is exact in float32 but the squares of the values themselves, which a one-pass variance would need.
    spread = made(device, torch.float32, 3, 64).sign()
    spread = torch.cat((spread, -spread), dim=-1)
    y = layer_norm(2.0**15 + spread, torch.ones(128, device=device), impl=impl)
    torch.testing.assert_close(y, spread / math.sqrt(1 + 1e-5))


def test_rows_may_have_strides_and_heads(device, impl):
    wide = made(device, torch.float32, 6, 3 * 16 + 5)
    heads, weight, bias = wide[:, :48].view(6, 3, 16), *(made(device, torch.float32, 16, seed=s) for s in (1, 2))
    out = torch.full((6, 3 * 16 + 8), float("nan"), device=device)
    y, mean, rstd, h = op.forward(heads, weight, bias, 1e-5, out=out[:, :48].view(6, 3, 16), impl=impl)
    torch.testing.assert_close(y, plain(heads, weight, bias))
    assert y.data_ptr() == out.data_ptr()
    assert out[:, 48:].isnan().all()
    assert h is heads
    assert mean.shape == rstd.shape == (6, 3)
    dy = made(device, torch.float32, 6, 100, seed=3)[:, 1:49].view(6, 3, 16)
    dresidual = made(device, torch.float32, 6, 60, seed=4)[:, 2:50].view(6, 3, 16)
    leaf, w, b = (part.clone().requires_grad_() for part in (heads, weight, bias))
    wanted = torch.autograd.grad(plain(leaf, w, b), (leaf, w, b), dy)
    dh, dw, db = op.backward(dy, heads, mean, rstd, weight, dresidual=dresidual, need_dw=True, impl=impl)
    torch.testing.assert_close(dh, wanted[0] + dresidual)
    torch.testing.assert_close(dw, wanted[1])
    torch.testing.assert_close(db, wanted[2])


def test_columns_need_not_be_neighbours_in_memory(device, impl):
    x, residual = (made(device, torch.float32, 24, 5, seed=s).t().requires_grad_() for s in range(2))
    weight, bias = (made(device, torch.float32, 48, seed=s)[::2].requires_grad_() for s in (2, 3))
    leaves = (x, residual, weight, bias)
    upstream = [made(device, torch.float32, 24, 5, seed=s).t() for s in (4, 5)]
    own, wanted = layer_norm(x, weight, bias, residual=residual, impl=impl), plain(x, weight, bias, residual=residual)
    torch.testing.assert_close(own, wanted)
    torch.testing.assert_close(
        torch.autograd.grad(own, leaves, upstream), torch.autograd.grad(wanted, leaves, upstream)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_normalised_is_the_rounded_sum_that_the_backward_reads(device, impl, dtype):
    x, residual, weight = drawn(device, dtype, (4, 40), (4, 40), (40,))[0]
    y, h = layer_norm(x, weight, residual=residual, impl=impl)
    assert torch.equal(y, layer_norm(h, weight, impl=impl))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_may_be_wider_than_the_rows(device, impl, dtype):
    x, upstream = (made(device, dtype, 4, 20, seed=s) for s in range(2))
    weight, bias = (made(device, torch.float32, 20, seed=s).requires_grad_() for s in (2, 3))
    y = layer_norm(x, weight, bias, impl=impl)
    wanted = plain(x.float(), weight, bias)
    torch.testing.assert_close(y, wanted.to(dtype))
    gradients = torch.autograd.grad(y, (weight, bias), upstream)
    torch.testing.assert_close(gradients, torch.autograd.grad(wanted, (weight, bias), upstream.float()))


@pytest.mark.parametrize(("trains_weight", "trains_bias"), [(False, False), (True, False), (False, True)])
def test_frozen_parts_get_no_gradient(device, impl, trains_weight, trains_bias):
    x = made(device, torch.float32, 3, 20).requires_grad_()
    weight = made(device, torch.float32, 20, seed=1).requires_grad_(trains_weight)
    bias = made(device, torch.float32, 20, seed=2).requires_grad_(trains_bias)
    learnt = [part for part in (x, weight, bias) if part.requires_grad]
    upstream = made(device, torch.float32, 3, 20, seed=3)
    own = torch.autograd.grad(layer_norm(x, weight, bias, impl=impl), learnt, upstream)
    torch.testing.assert_close(own, torch.autograd.grad(plain(x, weight, bias), learnt, upstream))
    _, mean, rstd, _ = op.forward(x.detach(), weight.detach(), None, 1e-5, impl=impl)
    assert op.backward(upstream, x.detach(), mean, rstd, weight.detach(), impl=impl)[1:] == (None, None)


def test_more_rows_than_programs_sum_the_weights_gradients(device, impl, monkeypatch):
    if impl == "triton":
        from hasten.kernels.column_sums import triton as column_sums

        monkeypatch.setattr(column_sums, "_device", lambda device: (2, 2**17))
        monkeypatch.setattr(column_sums, "VALUES", 128)  # 4 rows at once: 4 turns, the last of them with few rows
    x, dy = (made(device, torch.float32, 26, 17, seed=s) for s in range(2))
    weight = made(device, torch.float32, 17, seed=2)
    _, mean, rstd, _ = op.forward(x, weight, None, 1e-5, impl=impl)
    _, dw, db = op.backward(dy, x, mean, rstd, weight, need_dw=True, impl=impl)
    again = op.backward(dy, x, mean, rstd, weight, need_dw=True, impl=impl)
    leaves = [part.double().requires_grad_() for part in (weight, torch.zeros_like(weight))]
    wanted = torch.autograd.grad(plain(x.double(), *leaves), leaves, dy.double())
    torch.testing.assert_close((dw, db), tuple(part.float() for part in wanted), rtol=1e-5, atol=1e-4)
    assert torch.equal(dw, again[1])
    assert torch.equal(db, again[2])


@pytest.mark.parametrize(
    ("width", "blocks"),
    [(1, (16, 128, 4)), (64, (64, 32, 4)), (576, (1024, 2, 4)), (4096, (4096, 1, 8)), (8192, (8192, 1, 16))],
)
def test_blocks_hold_whole_rows(width, blocks):
    pytest.importorskip("triton", reason="Triton is not installed; its kernels are tested where it is")
    from hasten.kernels.layer_norm import triton as kernels

    assert kernels.pick_blocks(width) == blocks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_node_for_compile(device, dtype):
    x, weight, bias = drawn(device, dtype, (4, 32), (32,), (32,))[0]
    leaves = [part.clone().requires_grad_() for part in (x, weight, bias)]
    forward, backward = torch.ops.hasten.layer_norm.default, torch.ops.hasten.layer_norm_backward.default
    torch.library.opcheck(forward, (leaves[0], None, leaves[1], None, 1e-5, "torch"))
    torch.library.opcheck(forward, (leaves[0], x, leaves[1], leaves[2], 1e-5, "torch"))
    _, mean, rstd, _ = op.forward(x, weight, bias, 1e-5, impl="torch")
    for arriving, need_dw in ((None, False), (x, True)):
        torch.library.opcheck(backward, (x, x, mean, rstd, weight, arriving, need_dw, "torch"))

    def doubled(x, weight, bias):
        return layer_norm(x, weight, bias, impl="torch") * 2

    compiled = torch.compile(doubled, backend="aot_eager", fullgraph=True)
    own, wanted = compiled(*leaves), doubled(*leaves)
    torch.testing.assert_close(own, wanted)
    torch.testing.assert_close(torch.autograd.grad(own.sum(), leaves), torch.autograd.grad(wanted.sum(), leaves))


def test_triton_on_a_cpu_is_refused_outside_the_interpreter(monkeypatch):
    from hasten.kernels import choice

    monkeypatch.setattr(choice, "interpreting", lambda: False)
    with pytest.raises(CapabilityError, match="'triton' for a tensor on cpu.*Use impl='auto'"):
        layer_norm(torch.ones(1, 4), torch.ones(4), impl="triton")
