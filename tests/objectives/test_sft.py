"""The loss: a token mean over the whole step, the same however the step is cut."""

import math
from types import SimpleNamespace

import pytest
import torch

from hasten.blocks.packed_attention import packed_attention
from hasten.data.packing import IGNORED, PackedCollator, PaddedCollator, predicting_positions
from hasten.objectives.sft import SftLoss, token_loss_sum
from support import tiny

LENGTHS = (3, 30, 5, 20)


def documents(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(0)
    made = []
    for length in lengths:
        ids = torch.randint(3, 128, (length,), generator=generator).tolist()
        made.append({"input_ids": ids, "labels": list(ids)})
    return made


def test_it_is_the_sum_of_minus_log_p():
    logits = torch.randn(1, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([[IGNORED, 3, IGNORED, 1]])
    expected = -(logits[0, 0].log_softmax(-1)[3] + logits[0, 2].log_softmax(-1)[1])
    # Float32 inside: 5 terms of size 1 in the log-sum-exp of 2 tokens, 10 * 2^-24.
    assert float(token_loss_sum(logits, labels)) == pytest.approx(float(expected), abs=6e-7)
    kept = predicting_positions(labels)
    assert torch.equal(token_loss_sum(logits[:, kept], labels), token_loss_sum(logits, labels))
    assert torch.equal(token_loss_sum(logits[:, kept], labels[0, kept + 1]), token_loss_sum(logits, labels))


def test_half_precision_logits_are_summed_in_float32():
    logits = torch.zeros(1, 4001, 2, dtype=torch.bfloat16)
    labels = torch.tensor([[IGNORED, *[1] * 4000]])
    # A bfloat16 sum of terms below 1 stops growing at 256 (8 bits). Float32 sums 4000 equal terms to 4000 * 2^-24.
    assert float(token_loss_sum(logits, labels)) == pytest.approx(4000 * math.log(2), rel=2.4e-4)


@pytest.mark.parametrize("layout", ["all positions", "kept positions"])
def test_nothing_to_learn_adds_nothing(layout):
    logits = torch.randn(1, 6 if layout == "all positions" else 0, 7, requires_grad=True)
    loss = SftLoss()(SimpleNamespace(logits=logits), torch.full((1, 6), IGNORED), 4)
    assert float(loss) == 0.0
    loss.backward()
    assert not logits.grad.any()


def test_an_empty_step_is_zero_not_nan():
    nothing = SimpleNamespace(logits=torch.randn(1, 0, 7))
    assert float(SftLoss()(nothing, torch.empty(0, dtype=torch.int64), 0)) == 0.0
    outputs = SimpleNamespace(logits=torch.randn(1, 6, 7))
    assert float(SftLoss()(outputs, torch.full((1, 6), IGNORED), 0)) == 0.0
    assert float(SftLoss()(outputs, torch.full((1, 6), IGNORED), torch.tensor(0))) == 0.0


def losses_and_gradients(cut, collator, masked=False):
    """The losses and the embedding gradient of one step, cut into micro-batches of `cut` documents."""
    model = tiny.llama()
    rows = documents()
    micro = [rows[start : start + cut] for start in range(0, len(rows), cut)]
    if masked:
        micro.append([{"input_ids": rows[0]["input_ids"], "labels": [IGNORED] * 3}])
    tokens = sum(length - 1 for length in LENGTHS)
    total = 0.0
    for batch in micro:
        inputs = collator(batch)
        inputs.pop("counts")
        labels = inputs.pop("labels")
        if isinstance(collator, PackedCollator):
            with packed_attention(model):
                outputs = model(**inputs)
        else:
            outputs = model(**inputs)
        loss = SftLoss()(outputs, labels, tokens)
        loss.backward()
        total += float(loss)
    return total, model.model.embed_tokens.weight.grad


# 2.1 and A9 of the pains: the mean of means is 4.9626, the token mean 4.9538.
@pytest.mark.parametrize("cut", [4, 2, 1])
@pytest.mark.parametrize("collator", [PackedCollator(), PaddedCollator(0)], ids=["packed", "padded"])
@pytest.mark.parametrize("masked", [False, True])
def test_how_a_step_is_cut_does_not_matter(cut, collator, masked):
    reference, gradient = losses_and_gradients(1, PaddedCollator(0))
    loss, other = losses_and_gradients(cut, collator, masked)
    # Float32 sums of at most 54 losses of size 5 in another order: 54 * 5 * 2^-24 / 54 each way, below 1e-6.
    assert loss == pytest.approx(reference, abs=1e-6)
    # Gradients below 1 are sums over 54 tokens and 2 layers in another order: 108 * 2^-24 = 6.4e-6.
    torch.testing.assert_close(other, gradient, rtol=0, atol=6.4e-6)
