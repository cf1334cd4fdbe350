"""Whole optimizer steps: which rows each of them reads, and the micro-batches they become.

transformers' trainer sees one batch per optimizer step. A sampler yields the rows of the whole step in the order that
the seed gives; a collator cuts their documents into micro-batches (`hasten.data.regroup`): packed ones within a token
budget, or padded ones of `batch_size` rows. `batch_size` and `accumulation` keep their meaning, rows per step is their
product (times the ranks), only where the step is cut is ours to choose.

A row is a document, or several of them (`data.pack_length`). Their composition stays, their order is new every epoch.

With several ranks each of them draws the same step and takes its share, so the divisor of the loss is known everywhere
without asking, and a short last step is shared too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Sampler

from hasten.data.bins import packs
from hasten.data.packing import Example, PackedCollator, PaddedCollator, lengths_of, supervised_of
from hasten.data.regroup import Groups, in_order, regroup
from hasten.data.settings import DataSettings
from hasten.errors import ConfigError
from hasten.plan import Layout
from hasten.training.settings import TrainingSettings

Rows = Sequence[Sequence[int]]
"""For each training row the indices of its documents."""

_LOOKED_AT = 100
"""Steps of the first epoch that a report cuts to learn how many micro-batches they take."""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """How rows become steps, and steps micro-batches."""

    batch_size: int
    accumulation: int
    layout: Layout
    token_budget: int
    """Most tokens in a packed micro-batch; one document may have more."""
    seed: int
    ranks: int = 1

    @property
    def rows(self) -> int:
        """Rows of one optimizer step, over all ranks."""
        return self.batch_size * self.accumulation * self.ranks

    def cut(self, lengths: npt.NDArray[np.int64]) -> list[Groups]:
        """The documents of a step as micro-batches.

        Args:
            lengths: tokens of the step's documents.

        Returns:
            ``[rank][micro-batch][document]``, places in `lengths`.
        """
        if self.layout == "packed":
            return regroup(lengths, budget=self.token_budget, ranks=self.ranks)
        return in_order(len(lengths), size=self.batch_size, ranks=self.ranks)


def steps_of(training: TrainingSettings, data: DataSettings, layout: Layout) -> Steps:
    """The steps that the settings ask for, on one rank."""
    return Steps(
        batch_size=training.batch_size,
        accumulation=training.accumulation,
        layout=layout,
        token_budget=training.token_budget or (data.pack_length or data.max_length) * training.batch_size,
        seed=training.seed,
    )


def training_rows(documents: Sequence[Example], data: DataSettings, layout: Layout) -> list[list[int]] | None:
    """The training rows that the settings ask for; None where each document is a row.

    Raises:
        ConfigError: rows of several documents that this run would pad, or a document longer than a row.
    """
    if not data.pack_length:
        return None
    if layout == "padded":
        raise ConfigError(
            "data.pack_length",
            f"{data.pack_length} for padded rows",
            "Several documents share a row only where packing is on and a test shows that they are kept apart.",
            "Set it to 0, or leave training.packing at 'auto' with a model of a tested family.",
        )
    return packs(documents, data.pack_length)


class EachAlone(Sequence[Sequence[int]]):
    """Rows of one document each, without a list of a million lists.

    Args:
        documents: how many there are.
    """

    def __init__(self, documents: int) -> None:
        self.documents = range(documents)

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, index: Any) -> Any:
        return (
            [[document] for document in self.documents[index]] if isinstance(index, slice) else [self.documents[index]]
        )


class StepSampler(Sampler[list[int]]):
    """The rows of each step of an epoch, in the order that seed and epoch give.

    Args:
        rows: how many there are.
        rows_per_step: how many one step reads; the last step of an epoch may have fewer.
        seed: of the order.
    """

    def __init__(self, rows: int, rows_per_step: int, seed: int) -> None:
        self.rows, self.rows_per_step, self.seed, self.epoch = rows, rows_per_step, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by transformers before each epoch, also when it resumes in one."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(self.rows, generator=generator).tolist()
        for start in range(0, self.rows, self.rows_per_step):
            yield order[start : start + self.rows_per_step]

    def __len__(self) -> int:
        return -(-self.rows // self.rows_per_step)


class StepInputs(TypedDict):
    """One optimizer step as one rank computes it."""

    micro_batches: list[dict[str, Any]]
    supervised: int
    """Learnt tokens of the global step: the one divisor of its loss."""
    real: int
    """All tokens of the global step."""


class StepCollator:
    """The rows of a step become this rank's micro-batches.

    Args:
        documents: what rows are made of.
        steps: how a step is cut.
        collator: lays out one micro-batch.
        rank: whose share is made.
    """

    def __init__(
        self, documents: Sequence[Example], steps: Steps, collator: PackedCollator | PaddedCollator, rank: int = 0
    ) -> None:
        self.documents, self.steps, self.collator, self.rank = documents, steps, collator, rank
        self.lengths, self.supervised = lengths_of(documents), supervised_of(documents)

    def __call__(self, rows: Rows) -> StepInputs:
        """One step.

        Args:
            rows: those of the global step.
        """
        documents = [document for row in rows for document in row]
        return {
            "micro_batches": list(self.micro_batches(documents)),
            "supervised": int(self.supervised[documents].sum()),
            "real": int(self.lengths[documents].sum()),
        }

    def micro_batches(self, documents: Sequence[int]) -> Iterator[dict[str, Any]]:
        """This rank's micro-batches of a step.

        Args:
            documents: indices of those of the global step.

        Yields:
            What the collator makes. The labels of a packed one are those of the kept positions alone, int64 ``[K]``:
            picked here, they cost no wait for the device.
        """
        for group in self.steps.cut(self.lengths[list(documents)])[self.rank]:
            own = [documents[place] for place in group]
            batch = self.collator([self.documents[document] for document in own])
            assert batch["counts"][0] == self.supervised[own].sum(), "documents count their learnt tokens as we do"
            if "logits_to_keep" in batch:
                batch["labels"] = batch["labels"][0, batch["logits_to_keep"] + 1]
            yield batch


class StepLoader(DataLoader[Any]):
    """Steps for transformers' trainer: one batch is one optimizer step.

    Args:
        rows: the training rows.
        collator: makes a step of them.
        **kwargs: of torch's `DataLoader`: workers, pinned memory.
    """

    def __init__(self, rows: Rows, collator: StepCollator, **kwargs: Any) -> None:
        sampler = StepSampler(len(rows), collator.steps.rows, collator.steps.seed)
        # A generator of its own: how often rows are drawn does not shift the random numbers of dropout.
        generator = torch.Generator().manual_seed(collator.steps.seed)
        super().__init__(rows, batch_sampler=sampler, collate_fn=collator, generator=generator, **kwargs)  # type: ignore[arg-type]

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose order comes next."""
        sampler = self.batch_sampler
        assert isinstance(sampler, StepSampler)
        sampler.set_epoch(epoch)


def steps_report(documents: Sequence[Example], rows: Rows | None, steps: Steps) -> list[str]:
    """What rows, steps and epochs consist of, one sentence a line, before training starts.

    Args:
        documents: what is trained on.
        rows: the training rows; None is each document alone.
        steps: how they become steps.
    """
    lengths = lengths_of(documents)
    every: Rows = EachAlone(len(documents)) if rows is None else rows
    sampler = StepSampler(len(every), steps.rows, steps.seed)
    some = [[document for row in step for document in every[row]] for step in islice(sampler, _LOOKED_AT)]
    micro = [len(steps.cut(lengths[step])[0]) for step in some]
    product = f"{steps.batch_size} x {steps.accumulation}" + (f" x {steps.ranks} ranks" if steps.ranks > 1 else "")
    return [
        f"{len(every):,} training rows, {_documents_per_row(every, len(documents))}",
        f"{steps.rows:,} rows per optimizer step ({product}), {len(sampler):,} steps per epoch",
        f"{lengths.sum() / len(sampler):,.0f} tokens per optimizer step on average, "
        f"in {np.mean(micro):.1f} {steps.layout} micro-batches"
        + (f" of at most {steps.token_budget:,} tokens" if steps.layout == "packed" else "")
        + (" on each rank" if steps.ranks > 1 else ""),
    ]


def _documents_per_row(rows: Rows, documents: int) -> str:
    most = max(len(row) for row in rows)
    if most == 1:
        return "1 document per row"
    return f"up to {most} documents per row ({documents / len(rows):.1f} on average)"
