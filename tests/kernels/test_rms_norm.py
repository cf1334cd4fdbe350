"""rms_norm keeps its promise in every shape, dtype and form."""

import pytest
import torch

from hasten.errors import CapabilityError
from hasten.kernels.rms_norm import op, rms_norm
from support.promise import enough, gradients_of, require_promise

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def plain(x, weight, eps=1e-6, plus_one=False, residual=None):
    h = x if residual is None else x + residual
    wide = h.to(torch.promote_types(h.dtype, torch.float32))
    normed = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(h.dtype)
    y = normed * (weight + 1 if plus_one else weight)
    return y if residual is None else (y, h)


def made(device, dtype, *shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 7), (2, 5, 64), (9, 100), (4, 576), (0, 16)])
def test_output_and_gradients(device, impl, dtype, shape):
    draws = [
        (made(device, dtype, *shape, seed=seed), made(device, dtype, shape[-1], seed=seed + 1))
        for seed in range(0, 2 * enough(shape), 2)
    ]
    require_promise(lambda x, w: rms_norm(x, w, impl=impl), plain, *draws)


def test_a_single_short_row(device, impl):
    inputs = made(device, torch.float32, 1, 3), made(device, torch.float32, 3, seed=1)
    own = gradients_of(lambda x, w: rms_norm(x, w, impl=impl), inputs)
    torch.testing.assert_close(own, gradients_of(plain, inputs))


def test_width_one_is_the_sign_of_the_value(device, impl):
    x = torch.tensor([[3.0], [-2.0]], device=device)
    y = rms_norm(x, torch.ones(1, device=device), impl=impl)
    torch.testing.assert_close(y, x.sign())


@pytest.mark.parametrize("dtype", DTYPES)
def test_plus_one_and_residual(device, impl, dtype):
    x, residual, weight = (made(device, dtype, *shape, seed=s) for s, shape in enumerate([(5, 48), (5, 48), (48,)]))

    def ours(x, residual, weight):
        return rms_norm(x, weight, plus_one=True, residual=residual, impl=impl)

    require_promise(ours, lambda x, r, w: plain(x, w, plus_one=True, residual=r), [x, residual, weight])


def test_rows_may_have_strides_and_heads(device, impl):
    wide = made(device, torch.float32, 6, 3 * 16 + 5)
    heads, weight = wide[:, :48].view(6, 3, 16), made(device, torch.float32, 16, seed=1)
    out = torch.full((6, 3 * 16 + 8), float("nan"), device=device)
    y, rstd, h = op.forward(heads, weight, 1e-6, False, out=out[:, :48].view(6, 3, 16), impl=impl)
    torch.testing.assert_close(y, plain(heads, weight))
    assert out[:, 48:].isnan().all()
    assert h is heads
    assert rstd.shape == (6, 3)
    dy = made(device, torch.float32, 6, 100, seed=2)[:, 1:49].view(6, 3, 16)
    leaf, w = heads.clone().requires_grad_(), weight.clone().requires_grad_()
    wanted = torch.autograd.grad(plain(leaf, w), (leaf, w), dy)
    dh, dw = op.backward(dy, heads, rstd, weight, False, need_dw=True, impl=impl)
    torch.testing.assert_close(dh, wanted[0])
    torch.testing.assert_close(dw, wanted[1])


def test_columns_outermost_are_read_right(device, impl):
    x, residual = (made(device, torch.float32, 12, 6, seed=seed).t() for seed in (0, 1))
    weight = made(device, torch.float32, 24, seed=2)[::2]
    for own, wanted in zip(
        rms_norm(x, weight, residual=residual, impl=impl), plain(x, weight, residual=residual), strict=True
    ):
        torch.testing.assert_close(own, wanted)


def test_more_rows_than_programs_sum_the_weight_gradient(device, impl, monkeypatch):
    if impl == "triton":
        from hasten.kernels.column_sums import triton as column_sums

        monkeypatch.setattr(column_sums, "_device", lambda device: (2, 2**17))
    x, weight = made(device, torch.float32, 300, 40), made(device, torch.float32, 40, seed=1)
    dy = made(device, torch.float32, 300, 40, seed=2)
    _, rstd, _ = op.forward(x, weight, 1e-6, False, impl=impl)
    _, dw = op.backward(dy, x, rstd, weight, False, need_dw=True, impl=impl)
    again = op.backward(dy, x, rstd, weight, False, need_dw=True, impl=impl)[1]
    leaf = weight.clone().requires_grad_()
    torch.testing.assert_close(dw, torch.autograd.grad(plain(x, leaf), leaf, dy)[0], rtol=1e-5, atol=1e-4)
    assert torch.equal(dw, again)


def test_one_node_for_compile(device):
    x, weight = made(device, torch.float32, 4, 32).requires_grad_(), made(device, torch.float32, 32, seed=1)
    torch.library.opcheck(torch.ops.hasten.rms_norm.default, (x, None, weight, 1e-6, False, "torch"))
    torch.library.opcheck(torch.ops.hasten.rms_norm.default, (x, x.detach(), weight, 1e-6, True, "torch"))
    compiled = torch.compile(lambda x: rms_norm(x, weight, impl="torch") * 2, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), rms_norm(x, weight, impl="torch") * 2)


def test_triton_on_a_cpu_is_refused_outside_the_interpreter(monkeypatch):
    from hasten.kernels import choice

    monkeypatch.setattr(choice, "interpreting", lambda: False)
    with pytest.raises(CapabilityError, match="'triton' for a tensor on cpu.*Use impl='auto'"):
        rms_norm(torch.ones(1, 4), torch.ones(4), impl="triton")
    assert torch.equal(
        rms_norm(torch.ones(1, 4), torch.ones(4)), rms_norm(torch.ones(1, 4), torch.ones(4), impl="torch")
    )


def test_rounds_cover_all_rows():
    from hasten.kernels.rows import rounds_of

    assert [rounds_of(rows, 1, 4) for rows in (0, 1, 4, 5, 8, 9, 17, 33)] == [1, 1, 1, 2, 2, 4, 8, 16]
    assert rounds_of(8192, 2, 1024) == 4
