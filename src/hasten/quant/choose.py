"""Which projections are worth more bytes: a knapsack filled with the nats they save.

Each projection has several ways to spend bytes, of which at most one is taken (a multiple-choice knapsack). Solved
exactly by dynamic programming over the bytes spent, counted in units of 1/16384 of the budget and rounded up, so that
the budget is kept to the byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

_UNITS = 16384


@dataclass(frozen=True)
class Upgrade:
    """One way to give a projection more bytes."""

    bits: int
    block: int
    """Values that share a scale; 0 where there is none."""
    nats_saved: float
    bytes_added: int


def affordable(upgrades: Mapping[str, Sequence[Upgrade]], budget_bytes: int) -> dict[str, Upgrade]:
    """The upgrades that save most together; projections without one are left out.

    Args:
        upgrades: for the name of each projection, its ways; each adds at least a byte.
        budget_bytes: what all may add together.
    """
    unit = max(1, ceil(budget_bytes / _UNITS))
    units = budget_bytes // unit
    most = np.zeros(units + 1)  # nats that can be saved with so many units
    taken: dict[str, np.ndarray] = {}
    for name, ways in upgrades.items():
        before, taken[name] = most.copy(), np.full(units + 1, -1)
        for number, way in enumerate(ways):
            need = _need(way, unit)
            if need > units or way.nats_saved <= 0:
                continue
            with_it = before[: units + 1 - need] + way.nats_saved
            better = with_it > most[need:]
            taken[name][need:][better] = number
            most[need:][better] = with_it[better]
    chosen: dict[str, Upgrade] = {}
    for name, ways in reversed(list(upgrades.items())):
        number = int(taken[name][units])
        if number >= 0:
            chosen[name] = ways[number]
            units -= _need(ways[number], unit)
    return chosen


def _need(way: Upgrade, unit: int) -> int:
    return ceil(way.bytes_added / unit)
