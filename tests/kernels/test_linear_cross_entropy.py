"""linear_cross_entropy keeps its promise for every option, dtype and chunk, and is cross entropy."""

import pytest
import torch
from torch.nn import functional as F

from hasten.errors import ConfigError, DataError
from hasten.kernels.linear_cross_entropy import linear_cross_entropy, op
from hasten.kernels.linear_cross_entropy.reference import RowMath
from support.promise import require_promise

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OPTIONS = {
    "none": {},
    "softcap": {"softcap": 2.0},
    "scale": {"logit_scale": 0.37},
    "smoothing": {"label_smoothing": 0.1},
    "z_loss": {"z_loss": 0.01},
    "all": {"softcap": 2.0, "logit_scale": 1.7, "label_smoothing": 0.1, "z_loss": 0.01},
}


def plain(hidden, weight, targets, bias=None, softcap=None, logit_scale=1.0, label_smoothing=0.0, z_loss=0.0):
    logits = F.linear(hidden, weight, bias)
    z = logits.to(torch.promote_types(logits.dtype, torch.float32)) * logit_scale
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    loss = F.cross_entropy(z, targets, reduction="sum", label_smoothing=label_smoothing)
    return loss + z_loss * (z.logsumexp(-1).square() * (targets != -100)).sum() if z_loss else loss


def made(device, dtype, *shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def problem(device, dtype, rows, width, vocabulary, seed=0):
    """Hidden states, weight, bias, and targets of which every third is ignored."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    targets[1::3] = -100
    hidden, weight = made(device, dtype, rows, width, seed=seed), made(device, dtype, vocabulary, width, seed=seed + 1)
    bias = made(device, dtype, vocabulary, seed=seed + 2)
    return hidden, weight * width**-0.5, bias, targets.to(device)


# An option is arithmetic in float32, whatever is read: one at a time there, none and all of them at every dtype.
@pytest.mark.parametrize(
    ("options", "dtype"),
    [(name, dtype) for name in OPTIONS for dtype in (DTYPES if name in ("none", "all") else DTYPES[:1])],
)
def test_loss_and_gradients(device, impl, dtype, options):
    draws = []
    for seed in range(0, 24, 3):
        hidden, weight, bias, targets = problem(device, dtype, 5, 24, 101, seed)
        draws.append((hidden, weight, targets, bias))

    def ours(hidden, weight, targets, bias):
        return linear_cross_entropy(hidden, weight, targets, bias=bias, impl=impl, **OPTIONS[options])

    require_promise(ours, lambda h, w, t, b: plain(h, w, t, b, **OPTIONS[options]), *draws, terms=101)


# One block of columns with and without a rest, and two blocks (16384 and 17).
@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 1), (4, 2), (1, 1003), (4, 1003), (4, 16401)])
def test_any_vocabulary(device, impl, rows, vocabulary):
    draws = []
    for seed in range(0, 48 // rows, 3):
        hidden, weight, _, targets = problem(device, torch.float32, rows, 16, vocabulary, seed)
        targets[0] = vocabulary - 1
        draws.append((hidden, weight, targets))

    def ours(hidden, weight, targets):
        return linear_cross_entropy(hidden, weight, targets, impl=impl)

    require_promise(ours, plain, *draws, terms=vocabulary)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows_of_a_chunk", [1, 3, 14])
def test_a10_chunked_cross_entropy_equals_the_whole(device, impl, dtype, rows_of_a_chunk):
    hidden, weight = made(device, dtype, 2, 7, 64).flatten(0, 1), made(device, dtype, 131, 64, seed=1) / 8
    targets = torch.randint(131, (14,), generator=torch.Generator().manual_seed(2)).to(device)
    targets[[0, 3, 4, 9, 13]] = -100
    chunk_bytes = rows_of_a_chunk * 192 * hidden.element_size()  # 131 logits are stored as 192
    assert op.pick_chunk(14, 192, hidden.element_size(), chunk_bytes) == rows_of_a_chunk
    results = []
    for loss_of in (
        lambda h, w: linear_cross_entropy(h, w, targets, chunk_bytes=chunk_bytes, impl=impl),
        lambda h, w: plain(h.float(), w.float(), targets),
    ):
        leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = loss_of(*leaves)
        mean = loss / (targets != -100).sum()
        results.append((loss, mean, *torch.autograd.grad(mean, leaves, retain_graph=True)))
    tolerance = {"rtol": 0, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-3}
    torch.testing.assert_close(results[0], results[1], **tolerance)


@pytest.mark.parametrize("rows_of_a_chunk", [1, 2, 5, 100])
def test_the_size_of_chunks_changes_nothing(device, impl, rows_of_a_chunk):
    hidden, weight, bias, targets = problem(device, torch.float32, 7, 16, 70)
    leaves = [part.requires_grad_() for part in (hidden, weight, bias)]
    results = []
    for chunk_bytes in (rows_of_a_chunk * 128 * 4, op.CHUNK_BYTES):
        loss = linear_cross_entropy(hidden, weight, targets, bias=bias, chunk_bytes=chunk_bytes, impl=impl)
        results.append((loss, *torch.autograd.grad(loss, leaves)))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("learnt", [(), (0,), (1,), (2,), (0, 1)])
def test_only_what_is_trained_gets_a_gradient(device, impl, learnt):
    hidden, weight, bias, targets = problem(device, torch.float32, 5, 8, 33)
    leaves = [part.requires_grad_(place in learnt) for place, part in enumerate((hidden, weight, bias))]
    loss = linear_cross_entropy(hidden, weight, targets, bias=bias, impl=impl)
    torch.testing.assert_close(loss, plain(hidden, weight, targets, bias))
    assert loss.requires_grad == bool(learnt)
    if learnt:
        (3 * loss).backward()
        trained = [leaves[place] for place in learnt]
        wanted = torch.autograd.grad(3 * plain(hidden, weight, targets, bias), trained)
        torch.testing.assert_close([leaf.grad for leaf in trained], list(wanted))
    assert all(leaves[place].grad is None for place in range(3) if place not in learnt)
    need = tuple(place in learnt for place in range(3))
    _, gradients = op.forward(
        hidden.detach(), weight.detach(), targets, bias.detach(), RowMath(), need, impl=impl
    )  # fmt: skip
    held = [gradients.dhidden_ND, gradients.dweight_VD, gradients.dbias_V]
    assert tuple(part is not None for part in held) == need


def test_without_a_gradient_only_the_loss_is_computed(device, impl):
    hidden, weight, bias, targets = problem(device, torch.float32, 5, 8, 33)
    with torch.no_grad():
        loss = linear_cross_entropy(hidden.requires_grad_(), weight, targets, bias=bias, impl=impl)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, plain(hidden, weight, targets, bias).detach())


@pytest.mark.parametrize("rows", [0, 3])
def test_nothing_to_learn_is_zero(device, impl, rows):
    hidden, weight, bias, _ = problem(device, torch.float32, rows, 8, 33)
    targets = torch.full((rows,), -1, device=device)
    leaves = [part.requires_grad_() for part in (hidden, weight, bias)]
    loss = linear_cross_entropy(hidden, weight, targets, bias=bias, ignore_index=-1, impl=impl)
    assert loss.item() == 0.0
    assert all(torch.equal(grad, torch.zeros_like(grad)) for grad in torch.autograd.grad(loss, leaves))


def test_ignored_rows_do_not_matter_even_where_they_are_not_numbers(device, impl):
    hidden, weight, bias, targets = problem(device, torch.float32, 6, 8, 33)
    dirty = hidden.clone()
    dirty[targets == -100] = float("nan")
    dirty.requires_grad_()
    loss = linear_cross_entropy(dirty, weight, targets, bias=bias, impl=impl)
    torch.testing.assert_close(loss, plain(hidden, weight, targets, bias))
    gradient = torch.autograd.grad(loss, dirty)[0]
    assert torch.equal(gradient[targets == -100], torch.zeros(2, 8, device=device))
    assert gradient.isfinite().all()


def test_a_token_that_a_bias_rules_out_does_not_matter(device, impl):
    hidden, weight, bias, targets = problem(device, torch.float32, 6, 8, 33)
    bias[:7] = float("-inf")
    targets = torch.where(targets < 0, targets, targets.clamp(min=7))
    require_promise(
        lambda h, w: linear_cross_entropy(h, w, targets, bias=bias, impl=impl),
        lambda h, w: plain(h, w, targets, bias.to(h.dtype)), (hidden, weight)
    )  # fmt: skip


def test_the_same_every_time(device, impl):
    hidden, weight, bias, targets = problem(device, torch.bfloat16, 9, 16, 70)
    leaves = [part.requires_grad_() for part in (hidden, weight, bias)]

    def run():
        loss = linear_cross_entropy(hidden, weight, targets, bias=bias, chunk_bytes=2 * 128 * 2, impl=impl)
        return loss, *torch.autograd.grad(loss, leaves)

    assert all(torch.equal(first, second) for first, second in zip(run(), run(), strict=True))


def test_hidden_states_and_targets_may_have_strides(device, impl):
    wide, weight, bias, targets = problem(device, torch.float32, 6, 20, 33)
    targets = targets.repeat_interleave(2)[::2]
    leaf = wide[:, 3:11].requires_grad_()
    loss = linear_cross_entropy(leaf, weight[:, :8], targets, bias=bias, impl=impl)
    wanted = plain(leaf, weight[:, :8], targets, bias)
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(torch.autograd.grad(loss, leaf)[0], torch.autograd.grad(wanted, leaf)[0])


def test_a_target_outside_the_vocabulary_is_refused_on_a_cpu_and_shows_elsewhere(device, impl):
    hidden, weight, _, targets = problem(device, torch.float32, 6, 8, 33)
    targets[3] = 33
    if device == "cpu":
        with pytest.raises(DataError, match=r"targets: 33 at position 3.*33 tokens.*this model's tokenizer"):
            linear_cross_entropy(hidden, weight, targets, impl=impl)
    logits = hidden @ weight.t()
    loss = op.rows_loss(logits, targets, RowMath(), gradient=True, impl=impl)
    assert loss.isnan().tolist() == [False, False, False, True, False, False]
    assert logits.isnan().all(1).tolist() == [False, False, False, True, False, False]


def test_rows_have_a_factor_of_their_own(device, impl):
    hidden, weight, _, targets = problem(device, torch.float32, 6, 8, 33)
    upstream, math = made(device, torch.float32, 6, seed=1), RowMath(softcap=1.5, after=1 / 0.7)
    logits = hidden @ weight.t()
    leaf = logits.clone().requires_grad_()
    losses = F.cross_entropy(1.5 * torch.tanh(leaf / 1.5) / 0.7, targets, reduction="none")
    wanted = torch.autograd.grad(losses, leaf, upstream)[0]
    kept = logits.clone()
    loss = op.rows_loss(logits, targets, math, gradient=False, impl=impl)
    assert torch.equal(kept, logits)
    torch.testing.assert_close(loss, losses.detach())
    op.rows_loss(logits, targets, math, gradient=True, upstream_R=upstream, impl=impl)
    torch.testing.assert_close(logits, wanted)


@pytest.mark.parametrize(
    ("rows", "vocabulary", "chunk_bytes", "size"),
    [(4096, 128256, 2**29, 2048), (3000, 128256, 2**29, 1536), (10, 128256, 2**29, 10), (0, 5, 2**29, 1),
     (9, 1000, 4000, 2), (9, 1000, 6000, 3), (9, 1000, 1, 1), (129, 1000, 2**29, 129)],
)  # fmt: skip
def test_chunks_are_of_about_equal_size(rows, vocabulary, chunk_bytes, size):
    picked = op.pick_chunk(rows, vocabulary, 2, chunk_bytes)
    assert min(picked, rows) == min(size, rows)


def test_one_node_for_compile(device):
    hidden, weight, bias, targets = problem(device, torch.float32, 5, 8, 33)
    leaves = [part.requires_grad_() for part in (hidden, weight, bias)]
    for needs in ((True, True, True), (True, False, False)):
        arguments = (hidden, weight.requires_grad_(needs[1]), targets, bias.requires_grad_(needs[2]))
        torch.library.opcheck(
            torch.ops.hasten.linear_cross_entropy.default,
            (*arguments, -100, 2.0, 1.0, 0.1, 0.01, op.CHUNK_BYTES, "torch", *needs),
        )
    for leaf in leaves:
        leaf.requires_grad_()

    def loss_of(hidden, weight, bias):
        return linear_cross_entropy(hidden, weight, targets, bias=bias, impl="torch") / 3

    compiled = torch.compile(loss_of, backend="aot_eager", fullgraph=True)
    loss = compiled(*leaves)
    torch.testing.assert_close(loss, loss_of(*leaves))
    wanted = torch.autograd.grad(loss_of(*leaves), leaves)
    torch.testing.assert_close(torch.autograd.grad(loss, leaves), wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": torch.zeros(4, dtype=torch.int64)}, r"targets \[4\].*int64 targets \[N\].*Reshape"),
        ({"targets": torch.zeros(5)}, r"targets \[5\] torch.float32"),
        ({"weight": torch.ones(7, 3, dtype=torch.float16)}, r"weight \[7, 3\] torch.float16.*of one dtype"),
        ({"bias": torch.ones(6)}, r"bias \[6\]"),
        ({"softcap": 0.0}, "softcap: 0.0.*above 0"),
        ({"label_smoothing": 1.5}, "label_smoothing: 1.5.*from 0 to 1"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    fitting = {"hidden": torch.ones(5, 3), "weight": torch.ones(7, 3), "targets": torch.zeros(5, dtype=torch.int64)}
    with pytest.raises(ConfigError, match=message):
        linear_cross_entropy(**{**fitting, **change})
