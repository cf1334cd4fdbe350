"""token_logprobs keeps its promise for every option, dtype and chunk, and is a log softmax."""

import pytest
import torch

from hasten.errors import ConfigError, DataError
from hasten.kernels.linear_cross_entropy import linear_cross_entropy
from hasten.kernels.token_logprobs import op, token_logprobs
from hasten.kernels.token_logprobs.reference import token_logprobs as plain
from support.promise import require_promise

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OPTIONS = {
    "none": {},
    "softcap": {"softcap": 2.0},
    "scale": {"logit_scale": 0.37},
    "temperature": {"temperature": 0.7},
    "all": {"softcap": 2.0, "logit_scale": 1.7, "temperature": 1.3},
}


def made(device, dtype, *shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def problem(device, dtype, rows, width, vocabulary, seed=0):
    """Hidden states, weight, bias, and targets of which every third is ignored."""
    targets = torch.randint(vocabulary, (rows,), generator=torch.Generator().manual_seed(seed))
    targets[1::3] = -100
    hidden, weight = made(device, dtype, rows, width, seed=seed), made(device, dtype, vocabulary, width, seed=seed + 1)
    bias = made(device, dtype, vocabulary, seed=seed + 2)
    return hidden, weight * width**-0.5, bias, targets.to(device)


# An option is arithmetic in float32, whatever is read: one at a time there, none and all of them at every dtype.
@pytest.mark.parametrize(
    ("options", "dtype"),
    [(name, dtype) for name in OPTIONS for dtype in (DTYPES if name in ("none", "all") else DTYPES[:1])],
)
def test_log_probabilities_and_gradients(device, impl, dtype, options):
    draws = []
    for seed in range(0, 24, 3):
        hidden, weight, bias, targets = problem(device, dtype, 5, 24, 101, seed)
        draws.append((hidden, weight, targets, bias))

    def ours(hidden, weight, targets, bias):
        return token_logprobs(hidden, weight, targets, bias=bias, impl=impl, **OPTIONS[options])

    require_promise(ours, lambda *parts: plain(*parts, **OPTIONS[options]), *draws)


# One block of columns with and without a rest, and two blocks (16384 and 17).
@pytest.mark.parametrize("vocabulary", [1, 2, 1003, 16401])
def test_any_vocabulary(device, impl, vocabulary):
    draws = []
    for seed in range(0, 12, 3):
        hidden, weight, _, targets = problem(device, torch.float32, 4, 16, vocabulary, seed)
        targets[0] = vocabulary - 1
        draws.append((hidden, weight, targets))
    require_promise(lambda h, w, t: token_logprobs(h, w, t, impl=impl), plain, *draws)


@pytest.mark.parametrize("rows_of_a_chunk", [1, 2, 5, 100])
def test_the_size_of_chunks_changes_nothing(device, impl, rows_of_a_chunk):
    hidden, weight, bias, targets = problem(device, torch.float32, 7, 16, 70)
    leaves, upstream = [part.requires_grad_() for part in (hidden, weight, bias)], made(device, torch.float32, 7)
    results = []
    for chunk_bytes in (rows_of_a_chunk * 128 * 4, op.CHUNK_BYTES):
        logp = token_logprobs(hidden, weight, targets, bias=bias, chunk_bytes=chunk_bytes, impl=impl)
        results.append((logp, *torch.autograd.grad(logp, leaves, upstream)))
    torch.testing.assert_close(results[0], results[1])


def test_it_is_minus_the_loss(device, impl):
    hidden, weight, bias, targets = problem(device, torch.float32, 7, 16, 70)
    loss = linear_cross_entropy(hidden, weight, targets, bias=bias, softcap=2.0, impl=impl)
    logp = token_logprobs(hidden, weight, targets, bias=bias, softcap=2.0, impl=impl)
    torch.testing.assert_close(-logp.sum(), loss)


def test_ignored_positions_are_zero_and_get_no_gradient_even_where_they_are_not_numbers(device, impl):
    hidden, weight, bias, targets = problem(device, torch.float32, 6, 8, 33)
    hidden[targets == -100] = float("nan")
    logp = token_logprobs(hidden.requires_grad_(), weight, targets, bias=bias, impl=impl)
    ignored = logp[targets == -100]
    assert torch.equal(ignored, torch.zeros_like(ignored))
    assert not ignored.signbit().any()
    gradient = torch.autograd.grad(logp.sum(), hidden)[0]
    assert torch.equal(gradient[targets == -100], torch.zeros(2, 8, device=device))
    assert gradient.isfinite().all()
    assert (gradient[targets != -100] != 0).all()


@pytest.mark.parametrize("rows", [0, 3])
def test_nothing_to_learn(device, impl, rows):
    hidden, weight, bias, _ = problem(device, torch.float32, rows, 8, 33)
    targets = torch.full((rows,), -1, device=device)
    leaves = [part.requires_grad_() for part in (hidden, weight, bias)]
    logp = token_logprobs(hidden, weight, targets, bias=bias, ignore_index=-1, impl=impl)
    assert torch.equal(logp, torch.zeros(rows, device=device))
    assert all(torch.equal(grad, torch.zeros_like(grad)) for grad in torch.autograd.grad(logp.sum(), leaves))


@pytest.mark.parametrize("learnt", [(), (0,), (1,), (2,)])
def test_only_what_is_trained_gets_a_gradient(device, impl, learnt):
    hidden, weight, bias, targets = problem(device, torch.float32, 5, 8, 33)
    leaves = [part.requires_grad_(place in learnt) for place, part in enumerate((hidden, weight, bias))]
    logp = token_logprobs(hidden, weight, targets, bias=bias, impl=impl)
    assert logp.requires_grad == bool(learnt)
    if learnt:
        trained = [leaves[place] for place in learnt]
        logp.sum().backward()
        wanted = torch.autograd.grad(plain(hidden, weight, targets, bias).sum(), trained)
        torch.testing.assert_close([leaf.grad for leaf in trained], list(wanted))
    need = tuple(place in learnt for place in range(3))
    parts = [part.detach() for part in (hidden, weight, bias)]
    gradients = op.backward(
        torch.ones(5, device=device), parts[0], parts[1], targets, parts[2], op.RowMath(), need, impl=impl
    )
    held = [gradients.dhidden_ND, gradients.dweight_VD, gradients.dbias_V]
    assert tuple(part is not None for part in held) == need


def test_the_same_every_time(device, impl):
    hidden, weight, bias, targets = problem(device, torch.bfloat16, 9, 16, 70)
    leaves = [part.requires_grad_() for part in (hidden, weight, bias)]

    def run():
        logp = token_logprobs(hidden, weight, targets, bias=bias, chunk_bytes=2 * 128 * 2, impl=impl)
        return logp, *torch.autograd.grad(logp, leaves, made(device, torch.float32, 9))

    assert all(torch.equal(first, second) for first, second in zip(run(), run(), strict=True))


def test_one_node_for_compile(device):
    hidden, weight, bias, targets = problem(device, torch.float32, 5, 8, 33)
    leaves = [part.requires_grad_() for part in (hidden, weight, bias)]
    arguments = (hidden, weight, targets, bias, -100, 2.0, 1.0, 0.7, op.CHUNK_BYTES, "torch")
    torch.library.opcheck(torch.ops.hasten.token_logprobs.default, arguments)
    without = (hidden, weight.detach(), targets, None, -100, None, 1.0, 1.0, op.CHUNK_BYTES, "torch")
    torch.library.opcheck(torch.ops.hasten.token_logprobs.default, without)

    def mean(hidden, weight, bias):
        return token_logprobs(hidden, weight, targets, bias=bias, impl="torch").sum() / 3

    compiled = torch.compile(mean, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*leaves), mean(*leaves))
    wanted = torch.autograd.grad(mean(*leaves), leaves)
    torch.testing.assert_close(torch.autograd.grad(compiled(*leaves), leaves), wanted)


def test_what_does_not_fit_is_refused():
    hidden, weight, _, targets = problem("cpu", torch.float32, 6, 8, 33)
    with pytest.raises(ConfigError, match="temperature: 0.0.*above 0"):
        token_logprobs(hidden, weight, targets, temperature=0.0)
    with pytest.raises(ConfigError, match="softcap: -1.0.*above 0"):
        token_logprobs(hidden, weight, targets, softcap=-1.0)
    with pytest.raises(ConfigError, match=r"targets \[5\].*int64 targets \[N\]"):
        token_logprobs(hidden, weight, targets[:5])
    targets[3] = 33
    with pytest.raises(DataError, match="targets: 33 at position 3.*33 tokens.*this model's tokenizer"):
        token_logprobs(hidden, weight, targets)
