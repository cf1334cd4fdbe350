"""How the documents of one optimizer step are cut into micro-batches, for one rank or several.

The update is a mean over all learnt tokens of the step, so any cut gives the same one, and the cut can be chosen by
cost alone: the fewest packed micro-batches that keep within a budget of tokens, the same number on every rank (each of
them takes part in the same exchanges), with loads as even as can be.

    8 documents, batch_size 2 x accumulation 4 on padded rows: 4 micro-batches
    their 3 100 tokens in a budget of 2 048, packed:           2 micro-batches, of 1 600 and 1 500 tokens

Both functions are pure, and every rank calls them with the whole step: nothing has to be agreed between them.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hasten.data.bins import best_fit

Groups = list[list[int]]
"""Micro-batches: for each the places of its documents in the step; an empty one runs without documents."""

_FEW = 16
"""Up to this many documents a better cut than best-fit's is searched for."""
_MOST_TRIES = 2000
"""Placements tried in that search, some milliseconds; then best-fit's cut stays."""


def regroup(lengths: Sequence[int] | npt.NDArray[np.integer], *, budget: int, ranks: int = 1) -> list[Groups]:
    """The fewest packed micro-batches within a token budget.

    Bin packing is NP-hard, so "fewest" means: what best-fit decreasing finds; if that is above the lower bound and the
    documents are few, what a short exhaustive search finds. Where the documents leave room, they are spread over the
    micro-batches by load, largest first, which lowers the peak of memory.

    Args:
        lengths: tokens of each document of the global step, at least 1.
        budget: most tokens of a micro-batch. A longer document gets one of its own.
        ranks: processes that share the step.

    Returns:
        ``[rank][micro-batch][document]``, the indices into `lengths` ascending, each exactly once; equally many
        micro-batches on every rank, the larger ones first.
    """
    sizes = np.asarray(lengths, dtype=np.int64).tolist()
    alone = [[place] for place, size in enumerate(sizes) if size > budget]
    rest = [place for place, size in enumerate(sizes) if size <= budget]
    shared = _fewest([sizes[place] for place in rest], budget)
    wanted = -(-(len(alone) + len(shared)) // ranks) * ranks - len(alone)
    shared = _spread([sizes[place] for place in rest], wanted, budget) or shared
    groups = alone + [[rest[index] for index in group] for group in shared]
    return _dealt([sorted(group) for group in groups], sizes, ranks)


def in_order(count: int, *, size: int, ranks: int = 1) -> list[Groups]:
    """Micro-batches of `size` documents in their order, as padded rows are cut.

    Args:
        count: documents of the global step.
        size: documents per micro-batch; the last one may have fewer.
        ranks: processes that share the step; they take micro-batches in turn.

    Returns:
        As `regroup`.
    """
    groups = [list(range(start, min(start + size, count))) for start in range(0, count, size)]
    groups += [[]] * (-len(groups) % ranks)
    return [groups[rank::ranks] for rank in range(ranks)]


def _fewest(sizes: list[int], budget: int) -> Groups:
    found = best_fit(sizes, budget)
    if len(sizes) > _FEW:
        return found
    least = max(-(-sum(sizes) // budget), sum(2 * size > budget for size in sizes))
    for count in range(least, len(found)):
        if better := _Search(sizes, budget, count).groups():
            return better
    return found


class _Search:
    """Depth first, largest document first, bins of equal load tried once."""

    def __init__(self, sizes: list[int], budget: int, count: int) -> None:
        self.sizes, self.budget = sizes, budget
        self.order = sorted(range(len(sizes)), key=lambda place: -sizes[place])
        self.loads = [0] * count
        self.bins: Groups = [[] for _ in range(count)]
        self.tries = 0

    def groups(self) -> Groups | None:
        """A cut into this many bins, or None where none was found."""
        return self.bins if self._place(0) else None

    def _place(self, at: int) -> bool:
        if at == len(self.order):
            return True
        place = self.order[at]
        size = self.sizes[place]
        tried: set[int] = set()
        for number, load in enumerate(self.loads):
            if load in tried or load + size > self.budget or self.tries >= _MOST_TRIES:
                continue
            tried.add(load)
            self.tries += 1
            self.loads[number] += size
            self.bins[number].append(place)
            if self._place(at + 1):
                return True
            self.loads[number] -= size
            self.bins[number].pop()
        return False


def _spread(sizes: list[int], count: int, budget: int) -> Groups | None:
    """The documents in `count` groups of even load, or None where that passes the budget."""
    groups: Groups = [[] for _ in range(count)]
    loads = [(0, number) for number in range(count)]  # a heap: equal loads by number
    for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
        load, number = loads[0]
        if load + sizes[place] > budget:
            return None
        heapq.heapreplace(loads, (load + sizes[place], number))
        groups[number].append(place)
    return groups


def _dealt(groups: Groups, sizes: list[int], ranks: int) -> list[Groups]:
    """The groups dealt to the ranks, the largest first, each to the rank with the least load that lacks one."""
    each = -(-len(groups) // ranks)
    dealt: list[Groups] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    weighed = sorted(((sum(sizes[place] for place in group), group) for group in groups), key=lambda pair: -pair[0])
    for load, group in weighed:
        rank = min((rank for rank in range(ranks) if len(dealt[rank]) < each), key=lambda rank: (loads[rank], rank))
        dealt[rank].append(group)
        loads[rank] += load
    return [own + [[] for _ in range(each - len(own))] for own in dealt]
