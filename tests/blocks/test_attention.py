"""Attention as blocks call it."""

import pytest
import torch

from hasten.blocks import attention
from hasten.blocks.attention import View, attend


def made(tokens, heads, width=16, seed=0):
    return torch.randn(1, tokens, heads, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ends(*lengths):
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)


def run(view, tokens=24):
    query, key, value = made(tokens, 4), made(tokens, 2, seed=1), made(tokens, 2, seed=2)
    attended = attend(query, key, value, view, learn=True)
    return [attended.output_BTHD, *attended.backward(made(tokens, 4, seed=3))]


@pytest.mark.parametrize(("lengths", "window"), [((8, 8, 8), None), ((24,), None), ((12, 12), 12)])
def test_documents_of_one_length_are_a_batch(lengths, window, monkeypatch):
    packed = run(View(cu_seq_lens=ends(*lengths), window=window))  # the longest is not known: one by one
    monkeypatch.setattr(attention, "packed_attention_forward", None)
    batch = run(View(cu_seq_lens=ends(*lengths), longest=lengths[0], window=window))
    for own, wanted in zip(batch, packed, strict=True):
        assert own.shape == wanted.shape
        torch.testing.assert_close(own, wanted)


@pytest.mark.parametrize(("lengths", "window"), [((8, 7, 9), None), ((12, 12), 5), ((10, 4, 10), None)])
def test_others_are_not(lengths, window):
    assert View(cu_seq_lens=ends(*lengths), longest=max(lengths), window=window).equal_documents(24) == 0
