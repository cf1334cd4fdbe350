"""How a step is cut does not matter (A9): batch size and accumulation, the token budget, padded or packed."""

import pytest
import torch
from transformers import TrainerCallback

from hasten.data.packing import IGNORED
from hasten.training.trainer import SftTrainer
from support import stepping

# "Equal" in list A. Float32 sums of at most 54 terms of size 5 in another order are off by 54 * 5 * 2^-24 / 54, some
# 3e-7, and gradients of size 1 through 2 layers of 7 products by some 2e-6.
EQUAL = 1e-5
CUTS = [(4, 1), (2, 2), (1, 4)]
SMALLEST, LARGEST = 1, 1000
"""Budgets: each document alone, all documents in one row."""


class Seen(TrainerCallback):
    """Keeps the gradients that each update is made of."""

    def __init__(self):
        self.gradients = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.gradients.append(stepping.gradients(model))


def run(folder, examples, *, rows_per_step=4, **options):
    """Losses, gradients and last weights of one epoch."""
    trainer = stepping.trainer(folder, examples, **{"max_steps": -1, "num_train_epochs": 1, **options})
    seen = Seen()
    trainer.add_callback(seen)
    order = [step for step in trainer.get_train_dataloader().batch_sampler]
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, seen.gradients, stepping.trained(trainer.model), order


def by_hand(examples, order):
    """The same epoch without trainer, packing or padding: each document alone, one divisor a step, plain SGD."""
    model = stepping.adapted()
    losses, gradients = [], []
    for step in order:
        tokens = sum(label != IGNORED for row in step for label in examples[row]["labels"][1:])
        loss = torch.zeros(())
        for row in step:
            logits = model(input_ids=torch.tensor([examples[row]["input_ids"]])).logits[0, :-1]
            targets = torch.tensor(examples[row]["labels"][1:])
            loss = loss + torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
        (loss / tokens).backward()
        losses.append(float(loss.detach()) / tokens)
        gradients.append(stepping.gradients(model))
        with torch.no_grad():
            for weight in model.parameters():
                if weight.grad is not None:
                    weight -= 0.1 * weight.grad
        model.zero_grad()
    return losses, gradients, stepping.trained(model)


def check_a9(folder, *, lengths=stepping.UNEVEN, masked=(), **options):
    examples = stepping.documents(lengths, masked=masked)
    losses, gradients, weights, order = run(folder, examples, **options)
    expected_losses, expected_gradients, expected_weights = by_hand(examples, order)
    assert losses == pytest.approx(expected_losses, abs=EQUAL)
    assert len(gradients) == len(order)
    for found, expected in zip([*gradients, weights], [*expected_gradients, expected_weights], strict=True):
        assert found.keys() == expected.keys() and len(found) == 28
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=EQUAL, msg=name)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("masked", [(), (1,), (0, 2)])
@pytest.mark.parametrize("budget", [SMALLEST, 35, LARGEST])
def test_a9_packed(tmp_path, cut, masked, budget):
    check_a9(tmp_path, masked=masked, batch_size=cut[0], accumulation=cut[1], budget=budget)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("masked", [(), (1,), (0, 2)])
def test_a9_padded(tmp_path, cut, masked):
    check_a9(tmp_path, masked=masked, batch_size=cut[0], accumulation=cut[1], layout="padded")


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a9_with_a_short_last_window(tmp_path, cut, layout):
    lengths = (*stepping.UNEVEN, 9, 14)
    check_a9(tmp_path, lengths=lengths, batch_size=cut[0], accumulation=cut[1], layout=layout, budget=35)


@pytest.mark.parametrize("rows", [[[0, 2, 3], [1]], [[1, 0], [3], [2]]])
@pytest.mark.parametrize("budget", [SMALLEST, 35, LARGEST])
def test_a9_with_rows_of_several_documents(tmp_path, rows, budget):
    examples = stepping.documents()
    losses, (gradients,), _, (order,) = run(tmp_path, examples, rows=rows, budget=budget)
    step = [document for row in order for document in rows[row]]
    (expected_loss,), (expected,), _ = by_hand(examples, [step])
    assert losses == pytest.approx([expected_loss], abs=EQUAL)
    for name, value in expected.items():
        torch.testing.assert_close(gradients[name], value, rtol=0, atol=EQUAL, msg=name)


class MeanOfMeans(SftTrainer):
    """The fault of 2.1: every micro-batch has its own divisor."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        micro = inputs["micro_batches"]
        divisors = [max(batch["counts"][0], 1) * len(micro) for batch in micro]
        return sum(
            super(MeanOfMeans, self).training_step(
                model, {**inputs, "micro_batches": [batch], "supervised": divisor}, num_items_in_batch
            )
            for batch, divisor in zip(micro, divisors, strict=True)
        )


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a9_turns_red_with_a_mean_of_means(tmp_path, layout):
    options = {"layout": layout, "batch_size": 1, "accumulation": 4, "budget": SMALLEST}
    check_a9(tmp_path, **options)
    with pytest.raises(AssertionError):
        check_a9(tmp_path, kind=MeanOfMeans, **options)


class LastShareOnly(SftTrainer):
    """A step that forgets all micro-batches but one."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        return super().training_step(model, {**inputs, "micro_batches": inputs["micro_batches"][-1:]})


def test_a9_turns_red_when_a_micro_batch_is_lost(tmp_path):
    with pytest.raises(AssertionError):
        check_a9(tmp_path, kind=LastShareOnly, budget=SMALLEST)


# 2.2 of the pains: a model that takes no further arguments.
def test_a_model_with_a_narrow_forward_trains_on_padded_rows(tmp_path, capsys):
    class Narrow(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = stepping.adapted()

        def forward(self, input_ids, attention_mask):
            return self.inner(input_ids=input_ids, attention_mask=attention_mask)

    examples = stepping.documents()
    options = {"layout": "padded", "batch_size": 1, "accumulation": 4}
    expected, *_ = run(tmp_path, examples, **options)
    losses, *_ = run(tmp_path, examples, model=Narrow(), **options)
    assert losses == pytest.approx(expected, abs=EQUAL)
    assert capsys.readouterr().out == ""
