"""Collators: no label crosses a seam, padding is found by position, nothing is lost."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hasten.data.packing import (
    IGNORED,
    PackedCollator,
    PaddedCollator,
    count_supervised,
    isolating_mask,
    lengths_of,
    predicting_positions,
    round_up,
    rounded_sizes,
    supervised_of,
)

A = {"input_ids": [11, 12, 13, 14], "labels": [IGNORED, IGNORED, 13, 14]}
B = {"input_ids": [21, 22, 23], "labels": [21, 22, 23]}
PAD = 5


@st.composite
def document(draw):
    """A document as lists or as arrays, with any of its labels ignored and any of its ids the padding id."""
    length = draw(st.integers(1, 9))
    dtype = draw(st.sampled_from([np.int32, np.int64]))
    ids = draw(arrays.arrays(dtype, length, elements=st.integers(0, 9)))
    labels = np.where(draw(arrays.arrays(bool, length)), ids, IGNORED).astype(dtype)
    for part in (ids, labels):
        part.setflags(write=False)  # as a view into a file is
    if draw(st.booleans()):
        return {"input_ids": ids, "labels": labels}
    return {"input_ids": ids.tolist(), "labels": labels.tolist()}


def test_packed_as_drawn_in_the_docstring():
    packed = PackedCollator()([A, B])
    assert packed["input_ids"].tolist() == [[11, 12, 13, 14, 21, 22, 23]]
    assert packed["labels"].tolist() == [[IGNORED, IGNORED, 13, 14, IGNORED, 22, 23]]
    assert packed["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2]]
    assert packed["cu_seq_lens_q"].tolist() == packed["cu_seq_lens_k"].tolist() == [0, 4, 7]
    assert packed["cu_seq_lens_q"].dtype == torch.int32
    assert packed["max_length_q"] == packed["max_length_k"] == 4
    assert packed["logits_to_keep"].tolist() == [1, 2, 4, 5]
    assert packed["counts"] == (4, 7)


@given(st.lists(document(), max_size=6))
def test_packing_loses_nothing(documents):
    packed = PackedCollator()(documents)
    bounds = packed["cu_seq_lens_q"].tolist()
    if not documents:
        assert bounds == [0, 1] and packed["counts"] == (0, 0) and packed["labels"].tolist() == [[IGNORED]]
        return
    assert bounds[0] == 0 and np.diff(bounds).tolist() == [len(each["input_ids"]) for each in documents]
    assert packed["max_length_q"] == max(np.diff(bounds))
    for each, start, end in zip(documents, bounds[:-1], bounds[1:], strict=True):
        ids, labels, positions = (packed[name][0, start:end] for name in ("input_ids", "labels", "position_ids"))
        assert ids.tolist() == list(each["input_ids"])
        assert labels.tolist() == [IGNORED, *each["labels"][1:]]
        assert positions.tolist() == list(range(end - start))
    assert {packed[name].dtype for name in ("input_ids", "labels", "position_ids")} == {torch.int64}
    assert packed["counts"] == (sum(count_supervised(each["labels"]) for each in documents), bounds[-1])
    kept = packed["labels"][0, packed["logits_to_keep"] + 1]
    assert len(kept) == packed["counts"][0] and IGNORED not in kept.tolist()


@given(st.lists(document(), max_size=6))
def test_padding_loses_nothing(documents):
    padded = PaddedCollator(PAD)(documents)
    assert padded["counts"] == PackedCollator()(documents)["counts"]
    if not documents:
        assert padded["input_ids"].tolist() == [[0]] and padded["labels"].tolist() == [[IGNORED]]
        return
    for each, ids, labels, mask in zip(documents, *(padded[name] for name in padded if name != "counts"), strict=True):
        length = len(each["input_ids"])
        padding = len(mask) - length
        assert ids.tolist() == [*each["input_ids"], *[PAD] * padding]
        assert labels.tolist() == [IGNORED, *each["labels"][1:], *[IGNORED] * padding]
        assert mask.tolist() == [1] * length + [0] * padding


def test_a_document_is_not_changed_by_collating_it():
    ids, labels = np.array([7, 8, 9]), np.array([7, 8, 9])
    for collator in (PackedCollator(), PaddedCollator(0)):
        collator([{"input_ids": ids, "labels": labels}])["labels"].fill_(1)
    assert labels.tolist() == [7, 8, 9]


def test_every_kept_position_predicts_a_label():
    packed = PackedCollator()([B, A, B])
    targets = packed["labels"][0, packed["logits_to_keep"] + 1]
    assert targets.tolist() == [22, 23, 13, 14, 22, 23]
    assert len(targets) == sum(count_supervised(example["labels"]) for example in (B, A, B))


def test_a_document_of_one_token_learns_nothing():
    single = {"input_ids": [5], "labels": [5]}
    assert count_supervised(single["labels"]) == 0
    packed = PackedCollator()([single, A])
    assert packed["cu_seq_lens_q"].tolist() == [0, 1, 5]
    assert packed["logits_to_keep"].tolist() == [2, 3]
    alone = PackedCollator()([single])
    assert alone["logits_to_keep"].shape == (0,) and alone["counts"] == (0, 1)


@given(st.lists(document(), max_size=6))
def test_rounded_rows_are_the_same_rows_and_documents_that_teach_nothing(documents):
    plain, rounded = PackedCollator()(documents), PackedCollator(rounded=True)(documents)
    real, kept = plain["input_ids"].shape[1], len(plain["logits_to_keep"])
    own = plain["cu_seq_lens_q"].tolist()
    sizes = rounded_sizes(np.diff(own), kept)
    assert rounded["counts"] == plain["counts"]
    assert rounded["input_ids"].shape[1] == sizes.tokens == round_up(real)
    for name in ("input_ids", "labels", "position_ids"):
        assert torch.equal(rounded[name][:, :real], plain[name])
    assert (rounded["labels"][:, real:] == IGNORED).all()
    boundaries = rounded["cu_seq_lens_q"].tolist()
    assert boundaries == own + [sizes.tokens] * (len(boundaries) - len(own))
    assert len(boundaries) == sizes.documents + 1 > len(own)
    assert rounded["position_ids"][0, real:].tolist() == list(range(sizes.tokens - real))
    assert rounded["max_length_q"] >= max(np.diff(boundaries))
    assert torch.equal(rounded["logits_to_keep"][:kept], plain["logits_to_keep"])
    further = rounded["labels"][0, rounded["logits_to_keep"][kept:] + 1]
    assert (further == IGNORED).all()
    assert len(rounded["logits_to_keep"]) == sizes.kept


def test_full_rows_of_one_length_stay_a_batch():
    row = {"input_ids": [1] * 256, "labels": [1] * 256}
    full = PackedCollator(rounded=True)([row, row])
    assert full["cu_seq_lens_q"].tolist() == [0, 256, 512] and full["max_length_q"] == 256
    assert PackedCollator(rounded=True)([row, A])["cu_seq_lens_q"].tolist() == [0, 256, 260, 384, 384]


@given(st.lists(st.integers(1, 700), min_size=1, max_size=40))
def test_only_full_rows_look_like_full_rows(lengths):
    """Attention knows them by documents x longest = tokens, without asking the device."""
    sizes = rounded_sizes(np.array(lengths), 0)
    full = len(set(lengths)) == 1 and lengths[0] % 128 == 0
    assert (sizes.documents * sizes.longest == sizes.tokens) == full


@pytest.mark.parametrize(
    ("tokens", "rounded"), [(0, 0), (1, 128), (128, 128), (511, 512), (2049, 2176), (4096, 4096), (4097, 4352)]
)
def test_there_are_16_sizes_per_power_of_two(tokens, rounded):
    assert round_up(tokens) == rounded


def test_sizes_recur_and_cost_little():
    for power in range(11, 16):
        sizes = {round_up(tokens) for tokens in range(2**power + 1, 2 ** (power + 1) + 1)}
        assert len(sizes) == 16
    assert all(round_up(tokens) - tokens < max(128, tokens / 16) for tokens in range(1, 9000))


def test_the_jobs_of_an_instruction_data_set_have_few_sizes():
    """Steps of 16 rows, of which all or some tokens are learnt."""
    generator = np.random.default_rng(0)
    sizes = set()
    for _ in range(500):
        lengths = generator.integers(40, 300, 16)
        sizes.add(rounded_sizes(lengths, int(lengths.sum() * generator.uniform(0.55, 0.65))))
    assert len(sizes) <= 40


def test_a_plain_row_has_only_what_any_model_takes():
    plain, packed = PackedCollator(plain=True)([A, B]), PackedCollator()([A, B])
    assert packed.keys() - plain.keys() == {"logits_to_keep", "counts"}
    assert all(torch.equal(torch.as_tensor(plain[name]), torch.as_tensor(packed[name])) for name in plain)


def test_padded():
    padded = PaddedCollator(99)([A, B])
    assert padded["input_ids"].tolist() == [[11, 12, 13, 14], [21, 22, 23, 99]]
    assert padded["labels"].tolist() == [[IGNORED, IGNORED, 13, 14], [IGNORED, 22, 23, IGNORED]]
    assert padded["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert padded["counts"] == (4, 7)


def check_a3(collator, tokenizer):
    """A3 of the pains: the collator of transformers gives [6004, -100, -100, -100] and [28120, 665, 3289, -100]."""
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    rows = [tokenizer(text).input_ids for text in ("hi<|im_end|>", "hello there friend<|im_end|>")]
    padded = collator([{"input_ids": ids, "labels": list(ids)} for ids in rows])
    assert padded["input_ids"].tolist() == [[6004, 2, 2, 2], [28120, 665, 3289, 2]]
    assert padded["labels"].tolist() == [[IGNORED, 2, IGNORED, IGNORED], [IGNORED, 665, 3289, 2]]
    assert padded["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]


def test_a3_the_end_is_learnt_where_padding_shares_its_id(demo_tokenizer):
    check_a3(PaddedCollator(demo_tokenizer.pad_token_id), demo_tokenizer)


def test_a3_turns_red_when_padding_is_found_by_its_id(demo_tokenizer):
    class ById(PaddedCollator):
        def __call__(self, examples):
            batch = super().__call__(examples)
            batch["labels"][batch["input_ids"] == self.pad_id] = IGNORED
            return batch

    with pytest.raises(AssertionError):
        check_a3(ById(demo_tokenizer.pad_token_id), demo_tokenizer)


def test_predicting_positions_look_one_ahead():
    assert predicting_positions(torch.tensor([[7, IGNORED, 8, IGNORED]])).tolist() == [1]


def test_the_isolating_mask_shows_a_position_its_own_document_up_to_itself():
    mask = isolating_mask(torch.tensor([[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]]), torch.bfloat16)
    assert mask.shape == (2, 1, 5, 5) and mask.dtype == torch.bfloat16
    assert (mask[0, 0] == 0).int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]
    assert (mask[1, 0] == 0).sum(-1).tolist() == [1, 1, 2, 3, 4]
    assert set(mask.flatten().tolist()) == {0.0, torch.finfo(torch.bfloat16).min}


def test_lengths_and_learnt_tokens_are_counted_or_taken_from_the_documents():
    assert lengths_of([A, B]).tolist() == [4, 3] and supervised_of([A, B]).tolist() == [2, 2]

    class Stored(list):
        lengths = np.array([4, 3], dtype=np.int32)
        supervised = None

    assert lengths_of(Stored()).tolist() == [4, 3] and lengths_of(Stored()).dtype == np.int64
    assert supervised_of(Stored([A, B])).tolist() == [2, 2]
    assert supervised_of([{"input_ids": np.array([5, 6]), "labels": np.array([5, 6])}]).tolist() == [1]
