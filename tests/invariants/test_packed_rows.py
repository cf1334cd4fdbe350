"""Packed documents do not see each other, no label crosses a seam (A11): ours, plain models, stock trainers."""

import importlib.metadata

import pytest
import torch

from hasten.blocks.packed_attention import packed_attention
from hasten.data.packing import IGNORED, PackedCollator, isolating_mask
from hasten.objectives.sft import token_loss_sum
from support import stepping, tiny

# "Equal" in list A: float32 sums of the same terms in another order.
EQUAL = 1e-5
APART = 4.87966
"""Token mean of A (7 ids) and B (5 ids) run separately, 13.3 of the pains."""
ATTENTION = pytest.mark.parametrize("attention", ["sdpa", "eager"])
CACHE = pytest.mark.parametrize("cache", [{}, {"use_cache": True}, {"use_cache": False}], ids=["default", "on", "off"])


def two_documents():
    torch.manual_seed(1)
    ids = [torch.randint(3, 128, (length,)).tolist() for length in (7, 5)]
    return [{"input_ids": row, "labels": list(row)} for row in ids]


def model_with(attention):
    model = tiny.llama()
    model.set_attn_implementation(attention)
    return model


def check_isolated(logits, model, rows):
    """Every document's logits are those of the document alone."""
    with torch.no_grad():
        apart = torch.cat([model(torch.tensor([row["input_ids"]])).logits for row in rows], dim=1)
    torch.testing.assert_close(logits, apart, rtol=0, atol=EQUAL)


def check_a11(attention, cache, *, collator=None, mask=None):
    """The row through the model: by our attention, or by its own under `mask`."""
    model, rows = model_with(attention), two_documents()
    batch = (collator or PackedCollator(plain=True))(rows)
    labels = batch.pop("labels")
    with torch.no_grad():
        if mask is None:
            with packed_attention(model):
                logits = model(**batch, **cache).logits
        else:
            plain = {name: batch[name] for name in ("input_ids", "position_ids")}
            logits = model(**plain, attention_mask=mask(plain["position_ids"]), **cache).logits
    check_isolated(logits, model, rows)
    loss = token_loss_sum(logits, labels) / (labels[:, 1:] != IGNORED).sum()
    assert float(loss) == pytest.approx(APART, abs=5e-6)


@ATTENTION
@CACHE
def test_a11_with_our_attention(attention, cache):
    check_a11(attention, cache)


@ATTENTION
@CACHE
def test_a11_with_the_models_own_attention_and_the_isolating_mask(attention, cache):
    check_a11(attention, cache, mask=isolating_mask)


@ATTENTION
def test_a11_boundaries_and_mask_together(attention):
    """Whoever hands a plain model everything our API gives is right too."""
    model, rows = model_with(attention), two_documents()
    batch = PackedCollator(plain=True)(rows)
    with torch.no_grad():
        out = model(**batch, attention_mask=isolating_mask(batch["position_ids"]))
    check_isolated(out.logits, model, rows)
    assert float(out.loss) == pytest.approx(APART, abs=5e-6)


@ATTENTION
def test_a11_turns_red_without_the_seam_cut(attention):
    class WithoutCut(PackedCollator):
        def labels_of(self, rows, starts):
            labels = super().labels_of(rows, starts)
            labels[starts] = [row["labels"][0] for row in rows]
            return labels

    for mask in (None, isolating_mask):
        with pytest.raises(AssertionError, match=r"4\.8917"):  # measured in 13.3
            check_a11(attention, {}, collator=WithoutCut(plain=True), mask=mask)


@ATTENTION
def test_a11_turns_red_with_a_causal_mask(attention):
    def causal(position_ids):
        return isolating_mask(torch.arange(position_ids.shape[1])[None])

    with pytest.raises(AssertionError, match="not close"):
        check_a11(attention, {}, mask=causal)


@ATTENTION
def test_a11_turns_red_when_positions_alone_should_isolate(attention):
    """13.2 of the pains: transformers makes its own mask only where none is passed and nothing is cached."""
    check_a11(attention, {"use_cache": False}, mask=lambda position_ids: None)
    for mask in (lambda position_ids: None, torch.ones_like):
        with pytest.raises(AssertionError, match="not close"):
            check_a11(attention, {"use_cache": True}, mask=mask)


def token_mean_apart(model, examples):
    total = tokens = 0.0
    with torch.no_grad():
        for row in examples:
            logits = model(torch.tensor([row["input_ids"]])).logits
            total += float(token_loss_sum(logits, torch.tensor([row["labels"]])))
            tokens += len(row["labels"]) - 1
    return total / tokens


def isolated(examples):
    batch = PackedCollator(plain=True)(examples)
    return {**batch, "attention_mask": isolating_mask(batch["position_ids"])}


STOCK = {
    "max_steps": 1,
    "per_device_train_batch_size": 4,
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "logging_steps": 1,
    "remove_unused_columns": False,
}


def test_the_stock_trainer_of_transformers_trains_on_our_rows(tmp_path):
    from transformers import Trainer, TrainingArguments

    model, examples = tiny.llama(), stepping.documents()
    expected = token_mean_apart(model, examples)
    arguments = TrainingArguments(output_dir=str(tmp_path), **STOCK)
    trainer = Trainer(model, arguments, data_collator=isolated, train_dataset=examples)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, abs=EQUAL)


def test_the_stock_trainer_of_trl_trains_on_our_rows(tmp_path):
    trl = pytest.importorskip("trl")
    if importlib.metadata.version("trl").startswith("1.15."):
        pytest.skip("this release of trl computes its loss with a Triton kernel, which needs a GPU")
    from datasets import Dataset

    model, examples = tiny.llama(), stepping.documents()
    expected = token_mean_apart(model, examples)
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path), max_length=None, dataset_kwargs={"skip_prepare_dataset": True}, **STOCK
    )
    trainer = trl.SFTTrainer(
        model,
        arguments,
        data_collator=PackedCollator(plain=True),  # trl turns the cache off and passes no mask
        train_dataset=Dataset.from_list(examples),
        processing_class=tiny.tokenizer(),
    )
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, abs=EQUAL)
    assert trainer.state.log_history[0]["num_tokens"] == sum(stepping.UNEVEN)
