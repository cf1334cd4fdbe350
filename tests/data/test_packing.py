"""Collators: no label crosses a seam, padding is found by position, nothing is lost."""

import torch

from hasten.data.packing import IGNORED, PackedCollator, PaddedCollator, count_supervised, predicting_positions

A = {"input_ids": [11, 12, 13, 14], "labels": [IGNORED, IGNORED, 13, 14]}
B = {"input_ids": [21, 22, 23], "labels": [21, 22, 23]}


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


def test_padded():
    padded = PaddedCollator(99)([A, B])
    assert padded["input_ids"].tolist() == [[11, 12, 13, 14], [21, 22, 23, 99]]
    assert padded["labels"].tolist() == [[IGNORED, IGNORED, 13, 14], [IGNORED, 22, 23, IGNORED]]
    assert padded["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert padded["counts"] == (4, 7)


# A3 of the pains: the collator of transformers gives [6004, -100, -100, -100] and [28120, 665, 3289, -100].
def test_the_end_is_learnt_where_padding_shares_its_id(demo_tokenizer):
    assert demo_tokenizer.pad_token_id == demo_tokenizer.eos_token_id == 2
    rows = [demo_tokenizer(text).input_ids for text in ("hi<|im_end|>", "hello there friend<|im_end|>")]
    padded = PaddedCollator(demo_tokenizer.pad_token_id)([{"input_ids": ids, "labels": list(ids)} for ids in rows])
    assert padded["input_ids"].tolist() == [[6004, 2, 2, 2], [28120, 665, 3289, 2]]
    assert padded["labels"].tolist() == [[IGNORED, 2, IGNORED, IGNORED], [IGNORED, 665, 3289, 2]]
    assert padded["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]


def test_predicting_positions_look_one_ahead():
    assert predicting_positions(torch.tensor([[7, IGNORED, 8, IGNORED]])).tolist() == [1]
