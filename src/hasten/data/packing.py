"""Collators: rows of a micro-batch become the model's inputs, packed end to end or padded.

Packed (documents a, b with prompts in lower case and answers in upper case):

    input_ids      a1 a2 A3 A4 | b1 B2 B3
    labels         -  -  A3 A4 | -  B2 B3      the first label of a document is never set: no label crosses a seam
    position_ids   0  1  2  3  | 0  1  2
    cu_seq_lens    0             4         7
    logits_to_keep    1  2       4  5          positions whose *next* token is learnt: only they reach the head
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import torch

IGNORED = -100


class Example(TypedDict):
    """One document."""

    input_ids: list[int]
    labels: list[int]


def predicting_positions(labels: torch.Tensor) -> torch.Tensor:
    """Positions in a packed row whose next token is learnt.

    Args:
        labels: int64 ``[1, T]``, `IGNORED` where nothing is learnt.

    Returns:
        int64 ``[K]``, ascending.
    """
    return (labels[0, 1:] != IGNORED).nonzero().squeeze(1)


def count_supervised(labels: Sequence[int]) -> int:
    """How many tokens of a document are learnt (the first cannot be: nothing predicts it)."""
    return sum(label != IGNORED for label in labels[1:])


class PackedCollator:
    """Lays the documents of a micro-batch end to end in one row."""

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """One packed row.

        Returns:
            ``input_ids``, ``labels``, ``position_ids`` int64 ``[1, T]``; ``cu_seq_lens_q/k`` int32 ``[documents + 1]``;
            ``max_length_q/k`` int; ``logits_to_keep`` int64 ``[K]``; ``counts`` (supervised, real) ints.
        """
        ids = [token for example in examples for token in example["input_ids"]]
        labels = [label for example in examples for label in [IGNORED, *example["labels"][1:]]]
        lengths = [len(example["input_ids"]) for example in examples]
        starts = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        labels_1T = torch.tensor([labels])  # noqa: N806  # shape suffix
        keep = predicting_positions(labels_1T)
        return {
            "input_ids": torch.tensor([ids]),
            "labels": labels_1T,
            "position_ids": torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0),
            "cu_seq_lens_q": starts,
            "cu_seq_lens_k": starts,
            "max_length_q": max(lengths),
            "max_length_k": max(lengths),
            "logits_to_keep": keep,
            "counts": (len(keep), len(ids)),
        }


class PaddedCollator:
    """Pads the documents of a micro-batch on the right to the longest.

    Padding is where a document has ended, never where an id equals the padding id: the end token may share it.
    """

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """One padded batch.

        Returns:
            ``input_ids``, ``labels``, ``attention_mask`` int64 ``[B, T]``; ``counts`` (supervised, real) ints.
        """
        longest = max(len(example["input_ids"]) for example in examples)

        def padded(values: Sequence[int], filler: int) -> list[int]:
            return [*values, *[filler] * (longest - len(values))]

        return {
            "input_ids": torch.tensor([padded(example["input_ids"], self.pad_id) for example in examples]),
            "labels": torch.tensor([padded([IGNORED, *example["labels"][1:]], IGNORED) for example in examples]),
            "attention_mask": torch.tensor([padded([1] * len(example["input_ids"]), 0) for example in examples]),
            "counts": (
                sum(count_supervised(example["labels"]) for example in examples),
                sum(len(example["input_ids"]) for example in examples),
            ),
        }
