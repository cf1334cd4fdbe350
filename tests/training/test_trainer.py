"""The trainer's numbers against plain transformers and PEFT, and what it does with steps."""

import math
import sys

import pytest
import torch

from hasten.data.packing import IGNORED, count_supervised
from hasten.report.console import make_console
from hasten.training import job as jobs
from hasten.training.config import combine
from hasten.training.steps import StepSampler
from support import stepping

LAYOUTS = pytest.mark.parametrize("layout", ["packed", "padded"])


def summed_by_hand(model, row):
    logits = model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits
    targets = torch.tensor(row["labels"][1:])
    return torch.nn.functional.cross_entropy(logits[0, :-1], targets, ignore_index=IGNORED, reduction="sum")


# Packed rows and rows one by one are the same float32 sums in another order.
@LAYOUTS
def test_loss_and_gradients_equal_plain_transformers(tmp_path, layout):
    rows = stepping.documents()
    trainer = stepping.trainer(tmp_path, rows, layout=layout, budget=35, batch_size=2)
    model = trainer.model
    found = trainer.training_step(model, trainer.step_inputs([[number] for number in range(4)]))
    ours = stepping.gradients(model)
    model.zero_grad()
    tokens = sum(count_supervised(row["labels"]) for row in rows)
    expected = sum(summed_by_hand(model, row) for row in rows) / tokens
    expected.backward()
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-5)
    theirs = stepping.gradients(model)
    assert ours.keys() == theirs.keys() and len(ours) == 28
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=0, atol=1e-5)


@LAYOUTS
@pytest.mark.parametrize("budget", [1, 35, 1000])
def test_heldout_loss_is_a_token_mean(tmp_path, layout, budget):
    rows = stepping.documents((4, 25, 9), masked=(2,), seed=5)
    trainer = stepping.trainer(tmp_path, stepping.documents(), heldout=rows, layout=layout, budget=budget)
    with torch.no_grad():
        total = sum(float(summed_by_hand(trainer.model.eval(), row)) for row in rows)
    assert trainer.heldout_loss() == pytest.approx(total / (3 + 24), abs=1e-5)


@LAYOUTS
def test_without_heldout_documents_there_is_no_loss(tmp_path, layout):
    assert math.isnan(stepping.trainer(tmp_path, stepping.documents(), layout=layout).heldout_loss())


def test_the_models_own_attention_is_back_after_each_step(tmp_path):
    trainer = stepping.trainer(tmp_path, stepping.documents())
    before = trainer.model.get_base_model().config._attn_implementation
    trainer.training_step(trainer.model, trainer.step_inputs([[0], [1]]))
    assert trainer.model.get_base_model().config._attn_implementation == before != "hasten_packed"


@LAYOUTS
def test_transformers_sees_one_batch_per_step(tmp_path, layout):
    trainer = stepping.trainer(tmp_path, stepping.documents([5] * 10), layout=layout, batch_size=2, accumulation=2)
    assert trainer.args.gradient_accumulation_steps == 1
    assert len(trainer.get_train_dataloader()) == 3
    with pytest.raises(AssertionError, match="a step is one batch"):
        stepping.trainer(tmp_path, stepping.documents(), gradient_accumulation_steps=2)


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 3), (2.0, 6), (0.5, 2)])
def test_steps_of_an_epoch(tiny_values, tmp_path, epochs, steps):
    # Ten training rows, four a step: three steps an epoch, the last one short.
    tiny_values["training"] |= {"steps": 0, "epochs": epochs}
    trainer = jobs.make_trainer(jobs.prepare_job(combine(tiny_values), make_console(sys.stdout)), tmp_path)
    assert jobs.trainer_steps(trainer) == steps
    trainer.train()
    assert trainer.state.global_step == steps


def test_the_settings_reach_the_trainer(tiny_values, tmp_path):
    job = jobs.prepare_job(combine(tiny_values), make_console(sys.stdout))
    assert jobs.make_trainer(job, tmp_path).step_inputs.steps.token_budget == 64 * 2
    tiny_values["training"]["token_budget"], tiny_values["data"]["pack_length"] = 50, 64
    trainer = jobs.make_trainer(jobs.prepare_job(combine(tiny_values), make_console(sys.stdout)), tmp_path)
    assert trainer.step_inputs.steps.token_budget == 50
    assert sorted(document for row in trainer.train_dataset for document in row) == list(range(10))
    assert len(trainer.train_dataset) < 10


def test_tokens_are_counted_over_the_whole_step(tmp_path):
    trainer = stepping.trainer(tmp_path, stepping.documents(masked=(1,)), budget=1)
    trainer.training_step(trainer.model, trainer.step_inputs([[0], [1], [3]]))
    counts = trainer.take_counts()
    assert (counts.supervised, counts.real) == (2 + 19, 3 + 30 + 20) and counts.started
    trainer.train()
    assert trainer.take_counts().started is None, "the next step begins"


@pytest.mark.parametrize("late", [0, 1])
def test_steps_are_logged_as_they_were_however_late(tmp_path, late):
    """On a GPU a step's numbers are read when the next one has been launched, or before something is evaluated."""
    from transformers import TrainerCallback

    seen = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append(f"made {state.global_step}")
            control.should_evaluate = state.global_step == 3

        def on_log(self, args, state, control, logs=None, **kwargs):
            name = "loss" if "loss" in logs else "heldout" if "heldout_loss" in logs else "run"
            seen.append(f"{name} {state.global_step}")

    trainer = stepping.trainer(tmp_path, stepping.documents([6] * 10), batch_size=2, max_steps=6)
    assert trainer.late == 0, "on a CPU nothing is late"
    trainer.late = late
    trainer.add_callback(Watch())
    done = trainer.train()
    at_once = (
        "made 1, loss 1, made 2, loss 2, made 3, loss 3, heldout 3, made 4, loss 4, made 5, loss 5, made 6, loss 6"
    )
    # An epoch has five steps; at its end nothing is on its way.
    later = "made 1, made 2, loss 1, made 3, loss 2, loss 3, heldout 3, made 4, made 5, loss 4, loss 5, made 6, loss 6"
    assert ", ".join(seen) == (later if late else at_once) + ", run 6"
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4, 5, 6]
    assert [entry["epoch"] for entry in entries] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.2])
    assert [entry["elapsed_s"] for entry in entries] == sorted(entry["elapsed_s"] for entry in entries)
    assert done.training_loss == pytest.approx(sum(entry["loss"] for entry in entries) / 6)


@pytest.mark.parametrize("late", [0, 1])
@pytest.mark.parametrize("clip", [0.0, 1e-3])
def test_the_logged_numbers_are_the_steps_own(tmp_path, late, clip):
    """Loss and gradient norm (before clipping, and without it) of each step, against one backward by hand."""
    rows = stepping.documents([6] * 10)
    options = {"batch_size": 2, "max_steps": 3, "warmup_steps": 2, "lr_scheduler_type": "constant_with_warmup"}
    trainer = stepping.trainer(tmp_path, rows, max_grad_norm=clip, **options)
    trainer.late = late
    model, expected = stepping.adapted(), []
    order = list(StepSampler(10, 2, 0))
    for step, rate in enumerate((0.0, 0.05, 0.1)):
        loss = sum(summed_by_hand(model, rows[row]) for row in order[step]) / 10
        loss.backward()
        weights = [weight for weight in model.parameters() if weight.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(weights, clip or math.inf)
        expected.append((loss.item(), norm.item(), rate))
        with torch.no_grad():
            for weight in weights:
                weight -= rate * weight.grad
                weight.grad = None
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    for entry, (loss, norm, rate) in zip(entries, expected, strict=True):
        # float32 sums in another order
        assert entry["loss"] == pytest.approx(loss, abs=1e-5)
        assert entry["grad_norm"] == pytest.approx(norm, rel=1e-4)
        assert entry["learning_rate"] == pytest.approx(rate)
        assert entry["supervised_tokens"] == 10 and entry["real_tokens"] == 12


def steps_without_targets(folder, which, **options):
    """A trainer of five steps of two rows, in which the steps of `which` learn nothing."""
    order = list(StepSampler(10, 2, 0))
    masked = {row for step in which for row in order[step]}
    examples = stepping.documents([6] * 10, masked=masked)
    adam = {"optim": "adamw_torch", "weight_decay": 0.1, "learning_rate": 1e-2, "max_grad_norm": 1.0}
    return stepping.trainer(folder, examples, batch_size=2, max_steps=5, **{**adam, **options})


def check_skipped(trainer, which):
    """Train: those steps, and only those, change nothing and are counted."""
    from transformers import TrainerCallback

    weights = [stepping.trained(trainer.model)]

    class Keep(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            weights.append(stepping.trained(model))

    trainer.add_callback(Keep())
    trainer.train()
    assert trainer.skipped_steps == len(which) and trainer.state.global_step == 5
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["loss"] == 0.0 for entry in entries] == [step in which for step in range(5)]
    assert all(math.isfinite(entry["loss"]) and math.isfinite(entry["grad_norm"]) for entry in entries)
    for step, (before, after) in enumerate(zip(weights[:-1], weights[1:], strict=True)):
        assert all(torch.equal(before[name], after[name]) for name in before) == (step in which), step


# 2.3 of the pains: decay and momentum would move the weights even with gradients of zero.
@LAYOUTS
@pytest.mark.parametrize("which", [(0,), (2,), (1, 2), (4,)])
def test_a_step_without_targets_is_counted_and_changes_nothing(tmp_path, layout, which):
    check_skipped(steps_without_targets(tmp_path, which, layout=layout), which)


@pytest.mark.parametrize("which", [(0,), (2, 3), (4,)])
def test_a_step_without_targets_under_a_loss_scaler(tmp_path, which, monkeypatch):
    """As accelerate scales float16 on a GPU; on a CPU it refuses that type, not the scaler."""
    trainer = steps_without_targets(tmp_path, which)
    scaler = torch.amp.GradScaler("cpu")
    for owner, name, value in (
        (trainer.accelerator, "scaler", scaler),
        (trainer.accelerator, "native_amp", True),
        (trainer.accelerator.state, "_mixed_precision", "fp16"),
    ):
        monkeypatch.setattr(owner, name, value)
    before = scaler.get_scale()
    check_skipped(trainer, which)
    assert scaler.get_scale() == before, "it took no skipped step for an overflow"


def test_resume_within_the_second_epoch_is_exact(tmp_path):
    """Ten rows, four a step, dropout: steps 4 to 6 of a run that was cut equal those of one that was not."""

    def made(folder, steps):
        model = stepping.adapted()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.1
        options = {"optim": "adamw_torch", "save_strategy": "steps", "save_steps": 4, "max_steps": steps}
        return stepping.trainer(folder, stepping.documents(range(3, 13)), model=model, **options)

    straight = made(tmp_path / "straight", 6)
    straight.train()
    made(tmp_path / "cut", 4).train()
    resumed = made(tmp_path / "cut", 6)
    resumed.train(resume_from_checkpoint=True)
    losses = [[entry["loss"] for entry in run.state.log_history if "loss" in entry] for run in (straight, resumed)]
    assert losses[0] == losses[1] and len(losses[0]) == 6
    expected = stepping.trained(straight.model)
    assert all(torch.equal(value, expected[name]) for name, value in stepping.trained(resumed.model).items())
