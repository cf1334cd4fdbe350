"""Settings near those that were asked for which fit, in the order of how little they change.

Changing how something is computed changes least: the numbers stay the same (recomputing layers; fewer rows at once,
with as many more accumulations). Then what changes little (the optimizer's state in 8 bits), what changes the rows
(shorter ones), the weights (8, then 4 bits), and last what is trained (an adapter instead of everything).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from hasten.estimate.facts import Facts
from hasten.estimate.need import Estimate, Machine, Settings, estimate
from hasten.storage import Storage

SHORTEST = 512
"""Rows are not proposed shorter than this."""
MOST = 5
"""Proposals at most."""


@dataclass(frozen=True)
class Proposal:
    """Settings, and what they change."""

    estimate: Estimate
    changes: tuple[str, ...]


def nearest(facts: Facts, settings: Settings, machine: Machine) -> list[Proposal]:
    """What fits, the smallest change first; nothing that changes more than another proposal does needlessly.

    Args:
        facts: the model.
        settings: what was asked for, and does not fit.
        machine: where.
    """
    fitting: list[tuple[float, Settings, dict[str, str], Estimate]] = []
    for cost, other, changes in _others(facts, settings):
        found = estimate(facts, other, machine)
        if found.fits:
            fitting.append((cost, other, changes, found))
    proposals: list[Proposal] = []
    taken: list[set[str]] = []
    for _, _, changes, found in sorted(fitting, key=lambda each: each[0]):
        if any(before <= set(changes) for before in taken):
            continue
        taken.append(set(changes))
        proposals.append(Proposal(found, tuple(changes.values())))
    return proposals[:MOST]


def smallest(facts: Facts, settings: Settings, machine: Machine) -> Proposal:
    """The least that the model can be trained with here, whether it fits or not.

    Args:
        facts: the model.
        settings: what was asked for.
        machine: where.
    """
    found = ((estimate(facts, other, machine), changes) for _, other, changes in _others(facts, settings))
    least, changes = min(found, key=lambda each: each[0].total, default=(estimate(facts, settings, machine), {}))
    return Proposal(least, tuple(changes.values()))


def _others(facts: Facts, settings: Settings) -> Iterator[tuple[float, Settings, dict[str, str]]]:
    """Every combination of changes, with its cost."""
    halves = [settings.batch >> times for times in range(settings.batch.bit_length())]
    lengths = [settings.length]
    while lengths[-1] // 2 >= SHORTEST:
        lengths.append(lengths[-1] // 2)
    recomputed = (
        ("auto", "on") if settings.checkpointing == "off" else ("on",) if settings.checkpointing == "auto" else ()
    )
    options = itertools.product(
        enumerate((settings.checkpointing, *recomputed)),
        enumerate(halves),
        enumerate(dict.fromkeys((settings.optimizer, "adamw_8bit"))),
        enumerate(lengths),
        enumerate(_storages(facts, settings)),
        enumerate((True, False) if settings.full else (False,)),
    )
    for (check, checkpointing), (cut, batch), (other, optimizer), (short, length), (less, storage), (
        lora,
        full,
    ) in options:
        changed = replace(
            settings,
            checkpointing=checkpointing,
            batch=batch,
            optimizer=optimizer,  # type: ignore[arg-type]
            length=length,
            storage=storage,
            full=full,
        )
        if changed == settings or (full and storage != "plain"):
            continue
        changes = {}
        if check:
            changes["checkpointing"] = f"--checkpointing {checkpointing} (slower, the same numbers)"
        if cut:
            times, rest = divmod(settings.batch, batch)
            same = f" (with {times} times as many accumulations the update stays the same)" if not rest else ""
            changes["batch"] = f"--batch {batch}{same}"
        if other:
            changes["optimizer"] = f"--optimizer {optimizer}"
        if short:
            changes["length"] = f"--length {length}"
        if lora:
            changes["full"] = f"an adapter of rank {settings.rank} instead of all weights"
        if less:
            changes["storage"] = f"--storage {storage}"
        costs = ((check, 1.0), (cut, 2.0), (other, 4.0), (short, 8.0), (less, 16.0), (lora, 32.0))
        yield sum(cost + 0.1 * step for step, cost in costs if step), changed, changes


def _storages(facts: Facts, settings: Settings) -> tuple[Storage, ...]:
    """Smaller ones. A checkpoint that is quantized already stays as it is."""
    if facts.quantized or facts.layout is not None:
        return (settings.storage,)
    smaller: dict[Storage, tuple[Storage, ...]] = {"plain": ("plain", "fp8", "nf4"), "nf4": ("nf4",)}
    return smaller.get(settings.storage, (settings.storage, "nf4"))
