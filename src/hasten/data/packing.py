"""Collators: documents of a micro-batch become the model's inputs, packed end to end or padded.

Packed (documents a, b with prompts in lower case and answers in upper case):

    input_ids      a1 a2 A3 A4 | b1 B2 B3
    labels         -  -  A3 A4 | -  B2 B3      the first label of a document is never set: no label crosses a seam
    position_ids   0  1  2  3  | 0  1  2
    cu_seq_lens    0             4         7
    logits_to_keep    1  2       4  5          positions whose *next* token is learnt: only they reach the head

Rounded rows get a last document that teaches nothing, so that their lengths recur: a GPU's libraries look for the best
kernel anew at every new shape, which takes longer than the tokens that are added.

A document is a mapping of token ids and labels, as lists or as integer arrays (views into a file, say); both are laid
out by numpy in one go. A micro-batch without documents becomes a row of one token that teaches nothing: ranks that run
out of documents run it, so that all of them make the same calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch

IGNORED = -100

Tokens = Sequence[int] | npt.NDArray[np.integer[Any]]
"""Token ids or labels of one document."""


class Example(TypedDict):
    """One document."""

    input_ids: Tokens
    labels: Tokens


_NOTHING: Example = {"input_ids": [0], "labels": [IGNORED]}
"""What stands in an empty micro-batch; id 0 is in every vocabulary."""


def predicting_positions(labels: torch.Tensor) -> torch.Tensor:
    """Positions in a packed row whose next token is learnt.

    Args:
        labels: int64 ``[1, T]``, `IGNORED` where nothing is learnt.

    Returns:
        int64 ``[K]``, ascending.
    """
    return (labels[0, 1:] != IGNORED).nonzero().squeeze(1)


def count_supervised(labels: Tokens) -> int:
    """How many tokens of a document are learnt (the first cannot be: nothing predicts it)."""
    return int(np.count_nonzero(np.asarray(labels)[1:] != IGNORED))


def lengths_of(documents: Sequence[Example]) -> npt.NDArray[np.int64]:
    """Tokens of each document, int64 ``[documents]``: their own `lengths` where they have them, else counted."""
    known = getattr(documents, "lengths", None)
    if known is None:
        known = [len(document["input_ids"]) for document in documents]
    return np.asarray(known, dtype=np.int64)


def supervised_of(documents: Sequence[Example]) -> npt.NDArray[np.int64]:
    """Learnt tokens of each document, int64 ``[documents]``: their own `supervised` where they have it."""
    known = getattr(documents, "supervised", None)
    if known is None:
        known = [count_supervised(document["labels"]) for document in documents]
    return np.asarray(known, dtype=np.int64)


def isolating_mask(position_ids: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The attention mask that keeps packed documents apart, whatever else a model is told.

    transformers makes such a mask itself only where no mask is passed and no cache is kept. Given this one, which it
    takes as it is, isolation depends on nothing else. It costs T x T values; `packed_attention` needs none.

    Args:
        position_ids: int64 ``[B, T]``; a document starts at each 0.
        dtype: the model's.

    Returns:
        ``[B, 1, T, T]``, added to the scores: 0 where a position sees another one (of its document, itself or before
        it), the lowest value of `dtype` elsewhere.
    """
    document_BT = (position_ids == 0).cumsum(-1)  # noqa: N806  # shape suffix
    same = document_BT[:, :, None] == document_BT[:, None, :]
    seen = same & torch.ones_like(same[0]).tril()
    mask = torch.zeros(seen.shape, dtype=dtype, device=position_ids.device)
    return mask.masked_fill(~seen, torch.finfo(dtype).min).unsqueeze(1)


def round_up(tokens: int) -> int:
    """The next of 32 sizes per power of two, 8 tokens apart at least: up to a thirty-second more."""
    step = max(8, (1 << tokens.bit_length()) >> 6)
    return -(-tokens // step) * step


def _whole(lengths: npt.NDArray[np.int64]) -> bool:
    """Whether documents are full rows of one length, which attention takes as a batch: their shape recurs by itself."""
    return bool((lengths == lengths[0]).all() and lengths[0] % 128 == 0)


def _lengthened(kept: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Kept positions, and one whose next token is not learnt again and again until their number is a round one."""
    unlearnt = (labels[0, 1:] == IGNORED).nonzero()
    added = round_up(len(kept)) - len(kept)
    return torch.cat((kept, unlearnt[0].expand(added))) if len(unlearnt) and len(kept) else kept


class PackedCollator:
    """Lays the documents of a micro-batch end to end in one row.

    Args:
        plain: leave out what hasten's trainer alone reads (``logits_to_keep``, ``counts``). What is left suits any
            transformers model and stock trainers. Their own attention keeps the documents apart only without a mask
            and without a cache (``use_cache=False``), or with `isolating_mask`.
        rounded: lengthen rows, and the positions that are kept, to one of 32 sizes per power of two. What is added is
            a document of its own and learns nothing.
    """

    def __init__(self, *, plain: bool = False, rounded: bool = False) -> None:
        self.plain, self.rounded = plain, rounded

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """One packed row.

        Returns:
            ``input_ids``, ``labels``, ``position_ids`` int64 ``[1, T]``; ``cu_seq_lens_q/k`` int32 ``[documents + 1]``;
            ``max_length_q/k`` int; unless plain, ``logits_to_keep`` int64 ``[K]`` and ``counts`` (supervised, real)
            ints.
        """
        rows = list(examples) or [_NOTHING]
        lengths = np.array([len(row["input_ids"]) for row in rows], dtype=np.int64)
        real = int(lengths.sum()) if examples else 0
        if self.rounded and not _whole(lengths) and (added := round_up(int(lengths.sum())) - int(lengths.sum())):
            rows.append({"input_ids": [0] * added, "labels": [IGNORED] * added})
            lengths = np.append(lengths, added)
        ends = lengths.cumsum()
        starts = ends - lengths
        labels = self.labels_of(rows, starts)
        boundaries = torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32))
        longest = int(lengths.max())
        batch = {
            "input_ids": torch.from_numpy(_joined([row["input_ids"] for row in rows])).unsqueeze(0),
            "labels": torch.from_numpy(labels).unsqueeze(0),
            "position_ids": torch.from_numpy(np.arange(ends[-1]) - np.repeat(starts, lengths)).unsqueeze(0),
            "cu_seq_lens_q": boundaries,
            "cu_seq_lens_k": boundaries,
            "max_length_q": longest,
            "max_length_k": longest,
        }
        if not self.plain:
            kept = predicting_positions(batch["labels"])
            batch["logits_to_keep"] = _lengthened(kept, batch["labels"]) if self.rounded else kept
            batch["counts"] = (len(kept), real)
        return batch

    def labels_of(self, rows: Sequence[Example], starts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The labels of a row, int64 ``[T]``, cut at the seams: nothing predicts a document's first token."""
        labels = _joined([row["labels"] for row in rows])
        labels[starts] = IGNORED
        return labels


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
        rows = examples or [_NOTHING]
        lengths = [len(row["input_ids"]) for row in rows]
        shape = (len(rows), max(lengths))
        ids, labels, mask = (np.full(shape, filler, dtype=np.int64) for filler in (self.pad_id, IGNORED, 0))
        for place, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            ids[place, :length] = row["input_ids"]
            labels[place, 1:length] = row["labels"][1:]
            mask[place, :length] = 1
        return {
            "input_ids": torch.from_numpy(ids),
            "labels": torch.from_numpy(labels),
            "attention_mask": torch.from_numpy(mask),
            "counts": (int(np.count_nonzero(labels != IGNORED)), sum(lengths) if examples else 0),
        }


def _joined(parts: Sequence[Tokens]) -> npt.NDArray[np.int64]:
    return np.concatenate(parts, dtype=np.int64)
