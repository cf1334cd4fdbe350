"""Training batches of trl's trainer without padding: the same losses, the script's collator, evaluation as ever."""

import pytest
import torch
from datasets import Dataset

trl = pytest.importorskip("trl")

# ruff: noqa: E402
from compat.conftest import trl_that_trains
from hasten.blocks.apply import refused_in_training
from hasten.compat.padding_free import BOUNDARIES, PaddingFree
from hasten.compat.responses import train_on_responses_only
from hasten.compat.trainer import SFTConfig, SFTTrainer
from hasten.data.packing import IGNORED

pytestmark = trl_that_trains

TEXTS = ["the red dog", "and the green cat, say one two three", "blue", "what does the user say?"] * 2
TURNS = [
    [{"role": "user", "content": f"say {word}"}, {"role": "assistant", "content": answer}]
    for word, answer in (("one", "one two"), ("red", "blue red green"), ("dog", "cat"), ("two", "the user says two"))
]


def trainer_of(adapted, kind=SFTTrainer, dataset=None, **changes):
    model, tokenizer = adapted
    given = {"max_steps": 3, "warmup_steps": 0, "learning_rate": 1e-2, "optim": "adamw_torch", "seed": 1}
    given |= {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}
    extra = {
        name: changes.pop(name) for name in ("compute_loss_func", "data_collator", "eval_dataset") if name in changes
    }
    dataset = Dataset.from_dict({"text": TEXTS}) if dataset is None else dataset
    return kind(
        model=model, train_dataset=dataset, processing_class=tokenizer, args=SFTConfig(**(given | changes)), **extra
    )


def losses(trainer):
    trainer.train()
    assert refused_in_training(trainer.model) == set()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def padded_batch(side):
    ids = torch.tensor([[5, 6, 7, 0], [8, 9, 0, 0], [1, 2, 3, 4]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]])
    labels = torch.where(mask.bool(), ids, IGNORED)
    labels[2, 1] = IGNORED
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return batch if side == "right" else {name: value.flip(1) for name, value in batch.items()}


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_padded_batch_becomes_one_row(side):
    padded = padded_batch(side)
    row = PaddingFree(lambda examples: examples)(padded)
    real = padded["attention_mask"].bool()
    assert row["input_ids"].tolist() == [padded["input_ids"][real].tolist()]
    assert row[BOUNDARIES].tolist() == [0, 3, 5, 9] and row["max_length_q"] == 4
    assert row[BOUNDARIES].dtype == torch.int32
    assert row["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1, 2, 3]]
    wanted = padded["labels"][real]
    wanted[[0, 3, 5]] = IGNORED
    assert row["labels"].tolist() == [wanted.tolist()]
    if side == "right":  # as many targets as the padded batch has when its labels are shifted
        assert (row["labels"][:, 1:] != IGNORED).sum() == (padded["labels"][:, 1:] != IGNORED).sum()


def test_rows_without_tokens_are_left_out():
    batch = padded_batch("right")
    batch["attention_mask"][1] = 0
    assert PaddingFree(lambda examples: examples)(batch)[BOUNDARIES].tolist() == [0, 3, 7]


def test_a_batch_with_more_in_it_stays_as_it_is_and_that_is_said(capsys):
    batch = {**padded_batch("right"), "token_type_ids": torch.zeros(3, 4)}
    assert PaddingFree(lambda examples: examples)(batch) is batch
    assert "rows stay padded" in (said := capsys.readouterr().err) and "token_type_ids" in said


def test_the_losses_of_padded_rows(adapted_twice):
    free, padded = (
        trainer_of(each, padding_free=given) for each, given in zip(adapted_twice, (None, False), strict=True)
    )
    assert free.why_padded == "" and padded.why_padded == "the script decides"
    assert BOUNDARIES in next(iter(free.get_train_dataloader()))
    assert BOUNDARIES not in next(iter(padded.get_train_dataloader()))
    own, theirs = losses(free), losses(padded)
    assert len(own) == 3 and own[0] != own[-1]
    # Logs round to four digits; on a GPU both train in bfloat16.
    rounded = torch.cuda.is_available()
    torch.testing.assert_close(torch.tensor(own), torch.tensor(theirs), rtol=2.0**-8 if rounded else 1e-4, atol=0)
    if rounded:
        return  # Adam's first steps are a gradient's sign, whatever its size: rounding decides those near zero
    for (name, one), (_, other) in zip(free.model.named_parameters(), padded.model.named_parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4, msg=name)  # Adam divides by small gradients


def test_turns_red_when_documents_see_each_other(adapted_twice, monkeypatch):
    original = PaddingFree.__call__

    def leaky(self, examples):
        row = original(self, examples)
        ends = row[BOUNDARIES][[0, -1]]
        return {**row, "cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": int(ends[-1])}

    sound = losses(trainer_of(adapted_twice[0]))
    monkeypatch.setattr(PaddingFree, "__call__", leaky)
    leaking = losses(trainer_of(adapted_twice[1]))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(torch.tensor(sound), torch.tensor(leaking), rtol=1e-4, atol=0)


def test_learning_on_answers_only(adapted_twice):
    found = []
    for each, given in zip(adapted_twice, (None, False), strict=True):
        rows = Dataset.from_dict({"messages": TURNS})
        trainer = train_on_responses_only(
            trainer_of(each, dataset=rows, padding_free=given),
            instruction_part="<|im_start|>user\n",
            response_part="<|im_start|>assistant\n",
        )
        found.append(losses(trainer))
    torch.testing.assert_close(torch.tensor(found[0]), torch.tensor(found[1]), rtol=1e-4, atol=0)


def test_evaluation_reads_padded_rows(adapted):
    trainer = trainer_of(adapted, eval_dataset=Dataset.from_dict({"text": TEXTS}), eval_strategy="steps", eval_steps=2)
    assert not isinstance(trainer.data_collator, PaddingFree)
    trainer.train()
    assert not isinstance(trainer.data_collator, PaddingFree)
    assert BOUNDARIES not in next(iter(trainer.get_eval_dataloader()))
    assert any("eval_loss" in entry for entry in trainer.state.log_history)


class OwnLoss(SFTTrainer):
    def compute_loss(self, *args, **kwargs):
        return super().compute_loss(*args, **kwargs)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"neftune_noise_alpha": 5.0}, "NEFTune"),
        ({"kind": OwnLoss}, "its own loss"),
        ({"padding_free": False}, "the script decides"),
    ],
)
def test_where_rows_stay_padded_the_banner_says_why(adapted, changes, why, capsys):
    trainer = trainer_of(adapted, **changes)
    assert why in trainer.why_padded
    assert BOUNDARIES not in next(iter(trainer.get_train_dataloader()))
    trainer.train()
    assert f"padded: {trainer.why_padded}" in capsys.readouterr().err
