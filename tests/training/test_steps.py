"""Steps: the order of rows, the share of each rank, the report."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from hasten.data.documents import DocumentsWriter
from hasten.data.packing import IGNORED, PackedCollator, PaddedCollator
from hasten.data.settings import DataSettings
from hasten.errors import ConfigError
from hasten.training.settings import TrainingSettings
from hasten.training.steps import (
    EachAlone,
    StepCollator,
    StepLoader,
    Steps,
    StepSampler,
    steps_of,
    steps_report,
    training_rows,
)
from support.stepping import documents


def steps(**changes):
    fields = {"batch_size": 2, "accumulation": 2, "layout": "packed", "token_budget": 64, "seed": 7}
    return Steps(**{**fields, **changes})


def drawn(sampler, epoch):
    sampler.set_epoch(epoch)
    return list(sampler)


def test_the_order_is_that_of_transformers(tmp_path):
    """A run's rows come in the order that transformers and accelerate have always given them for this seed."""
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=2, seed=7, data_seed=7, use_cpu=True, report_to="none"
    )
    stock = Trainer(torch.nn.Linear(1, 1), arguments, data_collator=list, train_dataset=range(11))
    loader = stock.get_train_dataloader()
    for epoch in (0, 1, 5):
        loader.set_epoch(epoch)
        theirs = [row for batch in loader for row in batch]
        assert [row for step in drawn(StepSampler(11, 4, 7), epoch) for row in step] == theirs


def test_a_step_reads_batch_size_times_accumulation_rows():
    sampler = StepSampler(10, steps().rows, 7)
    assert list(map(len, sampler)) == [4, 4, 2] and len(sampler) == 3
    assert sorted(row for step in sampler for row in step) == list(range(10))
    assert drawn(sampler, 1) != drawn(sampler, 0) == drawn(sampler, 0)
    assert steps(ranks=3).rows == 12


def test_resuming_skips_steps_in_the_order_of_their_epoch():
    from accelerate import skip_first_batches

    examples = documents([4] * 10)
    loader = StepLoader(EachAlone(10), StepCollator(examples, steps(), PackedCollator()))
    loader.set_epoch(3)
    expected = [step["micro_batches"][0]["input_ids"].tolist() for step in loader]
    resumed = skip_first_batches(StepLoader(EachAlone(10), StepCollator(examples, steps(), PackedCollator())), 1)
    resumed.batch_sampler.batch_sampler.set_epoch(3)  # as transformers does
    assert isinstance(resumed, DataLoader) and len(resumed) == 2
    assert [step["micro_batches"][0]["input_ids"].tolist() for step in resumed] == expected[1:]


def test_drawing_rows_leaves_the_random_numbers_alone():
    loader = StepLoader(EachAlone(10), StepCollator(documents([4] * 10), steps(), PackedCollator()))
    before = torch.get_rng_state()
    list(loader)
    assert torch.equal(torch.get_rng_state(), before)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=16), st.integers(1, 3), st.sampled_from(["packed", "padded"]))
def test_the_ranks_share_a_step(lengths, ranks, layout):
    examples = [{"input_ids": [number] * length, "labels": [number] * length} for number, length in enumerate(lengths)]
    collator = PackedCollator() if layout == "packed" else PaddedCollator(99)
    shares = [
        StepCollator(examples, steps(layout=layout, ranks=ranks), collator, rank)([[n] for n in range(len(examples))])
        for rank in range(ranks)
    ]
    assert len({len(share["micro_batches"]) for share in shares}) == 1
    micro = [batch for share in shares for batch in share["micro_batches"]]
    assert {share["supervised"] for share in shares} == {sum(lengths) - len(lengths)}
    assert {share["real"] for share in shares} == {sum(lengths)} == {sum(batch["counts"][1] for batch in micro)}
    targets = sorted(label for batch in micro for label in batch["labels"].flatten().tolist() if label != IGNORED)
    assert targets == [number for number, length in enumerate(lengths) for _ in range(length - 1)]
    if layout == "packed":
        assert all(batch["input_ids"].shape[1] <= 64 for batch in micro)
    else:
        assert all(len(batch["input_ids"]) <= 2 for batch in micro)


def test_packed_labels_are_the_targets_of_the_kept_positions():
    (micro,) = StepCollator(documents((3, 5)), steps(), PackedCollator())([[1], [0]])["micro_batches"]
    assert micro["labels"].tolist() == micro["input_ids"][0, micro["logits_to_keep"] + 1].tolist()
    assert len(micro["labels"]) == micro["counts"][0] == 6


def test_rows_of_several_documents_are_regrouped_by_document():
    inputs = StepCollator(documents((10, 20, 30, 40)), steps(token_budget=50), PackedCollator())([[0, 3], [1, 2]])
    assert sorted(batch["input_ids"].shape[1] for batch in inputs["micro_batches"]) == [50, 50]
    assert inputs["real"] == 100


def test_documents_in_a_file_make_the_same_steps(tmp_path):
    examples = documents((10, 20, 30), masked=(1,))
    writer = DocumentsWriter(tmp_path)
    for number, example in enumerate(examples):
        ids, labels = (np.array(example[name], dtype=np.int32) for name in ("input_ids", "labels"))
        writer.add(ids, (labels != IGNORED) & (np.arange(len(ids)) > 0), number)
    rows = [[0], [1, 2]]
    kept, stored = (StepCollator(each, steps(), PackedCollator())(rows) for each in (examples, writer.finish()))
    assert (kept["supervised"], kept["real"]) == (stored["supervised"], stored["real"]) == (9 + 29, 60)
    for ours, theirs in zip(kept["micro_batches"], stored["micro_batches"], strict=True):
        assert all(torch.equal(torch.as_tensor(ours[name]), torch.as_tensor(theirs[name])) for name in ours)


def test_a_wrong_count_of_learnt_tokens_is_noticed():
    class Miscounted(list):
        lengths = np.array([3, 5])
        supervised = np.array([3, 5])  # the first token of each cannot be learnt

    with pytest.raises(AssertionError, match="count their learnt tokens"):
        StepCollator(Miscounted(documents((3, 5))), steps(), PackedCollator())([[0], [1]])


def test_the_settings_decide_the_budget():
    training = TrainingSettings(batch_size=3, accumulation=2, seed=5)
    assert steps_of(training, DataSettings(max_length=100), "packed") == Steps(
        batch_size=3, accumulation=2, layout="packed", token_budget=300, seed=5
    )
    assert steps_of(training, DataSettings(max_length=100, pack_length=512), "packed").token_budget == 1536
    training.token_budget = 70
    assert steps_of(training, DataSettings(max_length=100), "packed").token_budget == 70


def test_each_document_is_a_row_unless_rows_have_a_length():
    examples = documents([10] * 10)
    assert training_rows(examples, DataSettings(), "packed") is None
    assert training_rows(examples, DataSettings(), "padded") is None
    rows = training_rows(examples, DataSettings(pack_length=40), "packed")
    assert rows is not None and sorted(map(len, rows)) == [2, 4, 4]
    with pytest.raises(ConfigError, match=r"data.pack_length: 40 for padded rows.*Set it to 0"):
        training_rows(examples, DataSettings(pack_length=40), "padded")


def test_rows_of_one_document_each():
    rows = EachAlone(3)
    assert list(rows) == [[0], [1], [2]] and rows[1:] == [[1], [2]] and len(rows) == 3
    with pytest.raises(IndexError):
        rows[3]


# 13.5 of the pains.
def test_the_report_says_what_rows_and_steps_consist_of():
    examples = documents([10] * 10)
    rows = training_rows(examples, DataSettings(pack_length=40), "packed")
    assert steps_report(examples, rows, steps(batch_size=1, token_budget=40)) == [
        "3 training rows, up to 4 documents per row (3.3 on average)",
        "2 rows per optimizer step (1 x 2), 2 steps per epoch",
        "50 tokens per optimizer step on average, in 1.5 packed micro-batches of at most 40 tokens",
    ]
    assert steps_report(examples, None, steps(layout="padded", ranks=2)) == [
        "10 training rows, 1 document per row",
        "8 rows per optimizer step (2 x 2 x 2 ranks), 2 steps per epoch",
        "50 tokens per optimizer step on average, in 1.5 padded micro-batches on each rank",
    ]
