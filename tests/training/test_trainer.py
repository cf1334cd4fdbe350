"""The trainer's numbers against plain transformers and PEFT."""

import pytest
import torch

from hasten.data.packing import IGNORED
from hasten.report.console import make_console
from hasten.training.config import combine
from hasten.training.job import make_trainer, prepare_job, trainer_steps


@pytest.fixture
def job(tiny_values, capsys):
    import sys

    return prepare_job(combine(tiny_values), make_console(sys.stdout))


# Packed rows and rows one by one are the same float32 sums in another order.
def test_loss_and_gradients_equal_plain_transformers(job, tmp_path):
    trainer = make_trainer(job, tmp_path)
    rows = job.training.examples[:4]
    batch = trainer.data_collator(rows)
    tokens = batch["counts"][0]
    packed = trainer.training_step(job.model, batch, tokens)
    ours = {name: value.grad.clone() for name, value in job.model.named_parameters() if value.grad is not None}
    job.model.zero_grad()
    total = torch.zeros(())
    for row in rows:
        out = job.model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits
        targets = torch.tensor(row["labels"][1:])
        loss = torch.nn.functional.cross_entropy(out[0, :-1], targets, ignore_index=IGNORED, reduction="sum") / tokens
        loss.backward()
        total += loss.detach()
    torch.testing.assert_close(packed, total, rtol=0, atol=1e-5)
    theirs = {name: value.grad for name, value in job.model.named_parameters() if value.grad is not None}
    assert ours.keys() == theirs.keys() and len(ours) == 28
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=0, atol=1e-5)


def test_heldout_loss_is_a_token_mean(job, tmp_path):
    trainer = make_trainer(job, tmp_path)
    total, tokens = 0.0, 0
    for row in job.heldout:
        out = job.model.eval()(input_ids=torch.tensor([row["input_ids"]])).logits
        targets = torch.tensor(row["labels"][1:])
        total += torch.nn.functional.cross_entropy(out[0, :-1], targets, ignore_index=IGNORED, reduction="sum").item()
        tokens += int((targets != IGNORED).sum())
    assert trainer.heldout_loss() == pytest.approx(total / tokens, abs=1e-5)


def test_the_models_own_attention_is_back_after_each_step(job, tmp_path):
    trainer = make_trainer(job, tmp_path)
    before = job.model.get_base_model().config._attn_implementation
    trainer.training_step(job.model, trainer.data_collator(job.training.examples[:2]), 1)
    assert job.model.get_base_model().config._attn_implementation == before != "hasten_packed"


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 3), (2.0, 6), (0.5, 2)])
def test_steps_of_an_epoch(job, tmp_path, epochs, steps):
    # Ten training rows, four a step: three steps an epoch, the last one short.
    job.config.training.steps, job.config.training.epochs = 0, epochs
    trainer = make_trainer(job, tmp_path)
    assert trainer_steps(trainer) == steps
    trainer.train()
    assert trainer.state.global_step == steps
