"""rope keeps its promise: half-split, interleaved, partial, scaled, in place, and turned back."""

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from hasten.kernels.rope import op, rope
from support.promise import gradients_of, require_promise

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def made(device, dtype, *shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def tables(device, tokens, width, batch=1, factor=1.0, seed=5):
    """cos and sin as transformers' rotary modules give them: the two halves equal."""
    starts = torch.arange(batch)[:, None] * 3
    position = (starts + torch.arange(tokens)).double()
    angle = position[..., None] * 10000.0 ** (-torch.arange(0, width, 2).double() / width)
    both = torch.cat((angle, angle), dim=-1)
    return (both.cos() * factor).float().to(device), (both.sin() * factor).float().to(device)


def plain(q, k, cos, sin):
    """transformers' own, for heads in the third place and part of their width."""
    width = cos.shape[-1]
    turned = apply_rotary_pos_emb(q[..., :width], k[..., :width], cos.to(q.dtype), sin.to(q.dtype), unsqueeze_dim=2)
    return tuple(torch.cat((part, old[..., width:]), dim=-1) for part, old in zip(turned, (q, k), strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "width", "rotary"),
    [(2, 3, 3, 10, 10), (1, 3, 4, 64, 64), (2, 2, 9, 12, 8), (1, 0, 2, 8, 8)],
)
def test_as_transformers(device, impl, dtype, batch, tokens, heads, width, rotary):
    cos, sin = tables(device, tokens, rotary, batch)
    q = made(device, dtype, batch, tokens, heads, width)
    k = made(device, dtype, batch, tokens, 1, width, seed=1)
    # The tables are no leaves: they are bound here, at the dtype in which each side is run.
    require_promise(lambda q, k: rope(q, k, cos, sin, impl=impl), lambda q, k: plain(q, k, cos, sin), (q, k))


def test_a_single_pair(device, impl):
    cos, sin = (table + 0.5 for table in tables(device, 1, 2))  # position 0 would turn nothing
    inputs = made(device, torch.float32, 1, 1, 1, 2), made(device, torch.float32, 1, 1, 1, 2, seed=1)
    own = gradients_of(lambda q, k: rope(q, k, cos, sin, impl=impl), inputs)
    torch.testing.assert_close(own, gradients_of(lambda q, k: plain(q, k, cos, sin), inputs))


@pytest.mark.parametrize("rotary", [8, 6])
def test_interleaved_pairs_are_complex_numbers(device, impl, rotary):
    q, k = made(device, torch.float32, 1, 5, 2, 8), made(device, torch.float32, 1, 5, 1, 8, seed=1)
    cos, sin = tables(device, 5, rotary)
    turned = rope(q, k, cos, sin, interleaved=True, impl=impl)
    angle = torch.complex(cos[..., : rotary // 2], sin[..., : rotary // 2])[:, :, None]
    for own, old in zip(turned, (q, k), strict=True):
        pairs = torch.view_as_complex(old[..., :rotary].unflatten(-1, (-1, 2)).contiguous())
        wanted = torch.cat((torch.view_as_real(pairs * angle).flatten(-2), old[..., rotary:]), dim=-1)
        torch.testing.assert_close(own, wanted)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary", [8, 4])
def test_in_place_equals_out_of_place_and_turning_back_undoes_it(device, impl, interleaved, rotary):
    buffer = made(device, torch.float32, 6, 3 * 8 + 7)
    heads = buffer[:, :24].view(6, 3, 8)
    kept, before = buffer[:, 24:].clone(), heads.clone()
    cos, sin = (table[0] for table in tables(device, 3, rotary))  # three angles for six rows: two sequences
    apart = op.rotate(heads, cos, sin, interleaved=interleaved, impl=impl)
    op.rotate(heads, cos, sin, out=heads, interleaved=interleaved, impl=impl)
    assert torch.equal(heads, apart)
    assert torch.equal(buffer[:, 24:], kept)
    op.rotate(heads, cos, sin, out=heads, backward=True, interleaved=interleaved, impl=impl)
    torch.testing.assert_close(heads, before)


LAYOUTS = {
    "slices of one wide row": lambda made: [
        part.unflatten(-1, (-1, 8)) for part in made(2, 5, 40).split([24, 8, 8], -1)[:2]
    ],
    "heads before positions": lambda made: [made(2, heads, 5, 8).transpose(1, 2) for heads in (3, 1)],
    "columns apart": lambda made: [made(2, 5, heads, 2, 8).transpose(-1, -2)[..., 0] for heads in (3, 1)],
    "columns outermost": lambda made: [made(8, 2, 5, heads).permute(1, 2, 3, 0) for heads in (3, 1)],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(device, impl, layout):
    q, k = (part.requires_grad_() for part in LAYOUTS[layout](lambda *shape: made(device, torch.float32, *shape)))
    cos, sin = (table.mT.contiguous().mT for table in tables(device, 5, 8, batch=2))
    own, wanted = rope(q, k, cos, sin, impl=impl), plain(q, k, cos, sin)
    torch.testing.assert_close(own, wanted)
    upstream = [torch.randn_like(part) for part in wanted]
    torch.testing.assert_close(
        torch.autograd.grad(own, (q, k), upstream), torch.autograd.grad(wanted, (q, k), upstream)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tables_in_the_models_dtype_are_read_as_what_they_hold(device, impl, dtype):
    x = made(device, dtype, 6, 3, 8)
    cos, sin = (table[0].to(dtype) for table in tables(device, 6, 8))
    turned = op.rotate(x, cos, sin, impl=impl)
    assert turned.dtype == dtype
    assert torch.equal(turned, op.rotate(x, cos.float(), sin.float(), impl=impl))


def test_another_tensor_is_written_whole_and_only_it(device, impl):
    x, out = made(device, torch.float32, 4, 2, 8), torch.full((4, 2 * 8 + 3), float("nan"), device=device)
    cos, sin = (table[0] for table in tables(device, 4, 4))  # one angle a row, half of the width
    target = out[:, 1:17].view(4, 2, 8)
    assert op.rotate(x, cos, sin, out=target, impl=impl) is target
    assert torch.equal(target, op.rotate(x, cos, sin, impl=impl))
    assert out[:, [0, 17, 18]].isnan().all()


def test_a_size_factor_is_applied_once_each_way(device, impl):
    q, k = made(device, torch.float32, 1, 4, 2, 8).requires_grad_(), made(device, torch.float32, 1, 4, 1, 8, seed=1)
    cos, sin = tables(device, 4, 8)
    scaled = rope(q, k, 1.5 * cos, 1.5 * sin, impl=impl)[0]
    torch.testing.assert_close(scaled, 1.5 * rope(q, k, cos, sin, impl=impl)[0])
    gradient = torch.autograd.grad(scaled.square().sum(), q)[0]
    torch.testing.assert_close(gradient, 2 * 1.5**2 * q)


def test_one_node_for_compile(device):
    q, k = made(device, torch.float32, 1, 4, 2, 8).requires_grad_(), made(device, torch.float32, 1, 4, 1, 8)
    cos, sin = tables(device, 4, 8)
    arguments = (q.flatten(0, 1), cos[0], sin[0], False, False, "torch")
    torch.library.opcheck(torch.ops.hasten.rope.default, arguments)
    compiled = torch.compile(lambda q: rope(q, k, cos, sin, impl="torch")[0] * 2, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(q), rope(q, k, cos, sin, impl="torch")[0] * 2)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary", [8, 4])
@pytest.mark.parametrize(("heads", "kept", "rows", "width"), [(3, 1, 6, 8), (4, 2, 3, 12), (1, 1, 0, 8)])
def test_gradients_are_turned_back_side_by_side(device, impl, interleaved, rotary, heads, kept, rows, width):
    dq, dk = made(device, torch.float32, rows, heads, width), made(device, torch.float32, rows, kept, width, seed=1)
    dv = made(device, torch.float32, kept, rows, width, seed=2).transpose(0, 1)
    cos, sin = (table[0][:rows] for table in tables(device, 3, rotary))  # three angles: two sequences of six rows
    out = torch.full((rows, (heads + 2 * kept) * width + 5), float("nan"), device=device)
    op.join(dq, dk, dv, cos, sin, out=out[:, :-5], interleaved=interleaved, impl=impl)
    back = [op.rotate(part, cos, sin, backward=True, interleaved=interleaved, impl=impl) for part in (dq, dk)]
    assert torch.equal(out[:, :-5], torch.cat([*back, dv], dim=1).flatten(1))
    assert out[:, -5:].isnan().all()
