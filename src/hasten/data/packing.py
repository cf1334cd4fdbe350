"""Collators: documents of a micro-batch become the model's inputs, packed end to end or padded.

Packed (documents a, b with prompts in lower case and answers in upper case):

    input_ids      a1 a2 A3 A4 | b1 B2 B3
    labels         -  -  A3 A4 | -  B2 B3      the first label of a document is never set: no label crosses a seam
    position_ids   0  1  2  3  | 0  1  2
    cu_seq_lens    0             4         7
    logits_to_keep    1  2       4  5          positions whose *next* token is learnt: only they reach the head

Rounded rows get a last document that teaches nothing, and empty ones after it, so that their sizes recur: a GPU's
libraries look for the best kernel anew at every new size, and only what recurs can be recorded and replayed.

A document is a mapping of token ids and labels, as lists or as integer arrays (views into a file, say); both are laid
out by numpy in one go. A micro-batch without documents becomes a row of one token that teaches nothing: ranks that run
out of documents run it, so that all of them make the same calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Sizes:
    """What a packed row's shapes are: equal sizes are computed by the same launches.

    Two rows of equal sizes may hold documents of any lengths, as long as none is longer than `longest`.
    """

    tokens: int
    documents: int
    """Boundaries less one; empty documents count."""
    longest: int
    """At least the longest document's tokens."""
    kept: int
    """Positions that reach the head."""


def round_up(tokens: int) -> int:
    """The next of 16 sizes per power of two, 128 tokens apart at least: up to a sixteenth more, or 127 tokens."""
    step = max(128, (1 << tokens.bit_length()) >> 5)
    return -(-tokens // step) * step


def rounded_sizes(lengths: npt.NDArray[np.int64], kept: int) -> Sizes:
    """Few sizes that a row can be lengthened to.

    Full rows of one length, which attention takes as a batch, recur by themselves and are left as they are.

    Args:
        lengths: tokens of its documents.
        kept: positions that reach the head.
    """
    total, longest = int(lengths.sum()), int(lengths.max())
    if (lengths == longest).all() and longest % 128 == 0:
        return Sizes(total, len(lengths), longest, kept)
    tokens = round_up(total)
    longest = max(512, 1 << (max(longest, tokens - total) - 1).bit_length())  # a window that is a power is not passed
    documents = len(lengths) + 1  # the one that is added, or an empty one
    step = max(4, (1 << documents.bit_length()) >> 3)
    documents += -documents % step
    documents += documents * longest == tokens  # attention would take them for full rows
    eighth = tokens // 8
    return Sizes(tokens, documents, longest, -(-kept // eighth) * eighth)


def _lengthened(kept: torch.Tensor, labels: torch.Tensor, wanted: int) -> torch.Tensor:
    """Kept positions, and one whose next token is not learnt again and again until there are as many as wanted."""
    unlearnt = (labels[0, 1:] == IGNORED).nonzero()
    added = wanted - len(kept)
    return torch.cat((kept, unlearnt[0].expand(added))) if added > 0 and len(unlearnt) else kept


class PackedCollator:
    """Lays the documents of a micro-batch end to end in one row.

    Args:
        plain: leave out what hasten's trainer alone reads (``logits_to_keep``, ``counts``). What is left suits any
            transformers model and stock trainers. Their own attention keeps the documents apart only without a mask
            and without a cache (``use_cache=False``), or with `isolating_mask`.
        rounded: lengthen rows, boundaries and kept positions to sizes that recur (`rounded_sizes`). What is added
            learns nothing.
    """

    def __init__(self, *, plain: bool = False, rounded: bool = False) -> None:
        self.plain, self.rounded = plain, rounded

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """One packed row.

        Returns:
            ``input_ids``, ``labels``, ``position_ids`` int64 ``[1, T]``; ``cu_seq_lens_q/k`` int32 ``[documents + 1]``;
            ``max_length_q/k`` int; unless plain, ``logits_to_keep`` int64 ``[K]`` and ``counts`` (supervised, real)
            ints. Rounded ones may have more boundaries than documents (those at the end are empty), and a
            ``max_length`` above the longest.
        """
        rows = list(examples) or [_NOTHING]
        lengths = np.array([len(row["input_ids"]) for row in rows], dtype=np.int64)
        real = int(lengths.sum()) if examples else 0
        sizes = Sizes(real, len(rows), int(lengths.max()), 0)
        if self.rounded:
            sizes = rounded_sizes(lengths, sum(count_supervised(row["labels"]) for row in rows))
            if added := sizes.tokens - int(lengths.sum()):
                rows.append({"input_ids": [0] * added, "labels": [IGNORED] * added})
                lengths = np.append(lengths, added)
        ends = lengths.cumsum()
        starts = ends - lengths
        labels = self.labels_of(rows, starts)
        empty = np.full(max(0, sizes.documents - len(ends)), ends[-1])
        boundaries = torch.from_numpy(np.concatenate([[0], ends, empty]).astype(np.int32))
        batch = {
            "input_ids": torch.from_numpy(_joined([row["input_ids"] for row in rows])).unsqueeze(0),
            "labels": torch.from_numpy(labels).unsqueeze(0),
            "position_ids": torch.from_numpy(np.arange(ends[-1]) - np.repeat(starts, lengths)).unsqueeze(0),
            "cu_seq_lens_q": boundaries,
            "cu_seq_lens_k": boundaries,
            "max_length_q": sizes.longest,
            "max_length_k": sizes.longest,
        }
        if not self.plain:
            kept = predicting_positions(batch["labels"])
            batch["logits_to_keep"] = _lengthened(kept, batch["labels"], sizes.kept)
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
