"""The answer of `hasten plan`, for people and for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hasten.estimate.facts import Facts, facts_of
from hasten.estimate.models import Described
from hasten.estimate.nearest import Proposal, nearest, smallest
from hasten.estimate.need import Estimate, Machine, Settings, estimate
from hasten.hardware.memory import GIB, said
from hasten.plan import FP8_CAPABILITY


@dataclass(frozen=True)
class Answer:
    """Whether it fits, why, and what would."""

    described: Described
    facts: Facts
    machine: Machine
    estimate: Estimate
    proposals: tuple[Proposal, ...]
    least: Proposal | None
    """The smallest need, where nothing fits."""
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """For people."""
        found, facts, budget = self.estimate, self.facts, self.machine.budget
        how = "every weight trained" if found.settings.full else f"LoRA r{found.settings.rank}"
        lines = [
            f"model: {self.described.name}: {facts.family.name} ({facts.model_type}), {facts.values:,} weights, "
            f"{facts.layers} layers",
            f"machine: {self.machine.hardware.name}: {said(budget.bytes)} to plan with: {budget.rule}",
            f"asked: {how}, weights {found.settings.storage}, {found.settings.batch} x {found.settings.length:,} "
            f"tokens, {found.settings.optimizer}, checkpointing {found.settings.checkpointing}",
        ]
        width = max(len(part) for part in found.parts)
        lines += [f"  {part:{width}s}  {_shown(size):>10s}" for part, size in found.parts.items() if size]
        lines.append(f"  {'together':{width}s}  {said(found.total):>10s}")
        lines.append(f"activations: {found.activations.choice}: {found.activations.why}")
        lines += [f"note: {note}" for note in self.notes]
        if found.fits:
            lines.append(f"fits: {said(found.budget - found.total)} are left")
            return lines
        lines.append(f"does not fit: {said(found.total - found.budget)} too much")
        if self.proposals:
            lines.append("nearest settings that fit:")
            lines += [f"  {said(each.estimate.total):>10s}  {'; '.join(each.changes)}" for each in self.proposals]
        elif self.least is not None:
            changes = "; ".join(self.least.changes) or "as asked"
            lines.append(f"nothing fits; the smallest need is {said(self.least.estimate.total)}: {changes}")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "model": self.described.name,
            "model_type": self.facts.model_type,
            "values": self.facts.values,
            "files": {
                "bytes": self.described.files_bytes,
                "values": self.described.values,
                "types": self.described.types,
            },
            "targets": list(self.facts.targets),
            "fast": self.facts.fast,
            "machine": {"hardware": self.machine.hardware.as_dict(), "budget": self.machine.budget.as_dict()},
            **_plain(self.estimate),
            "proposals": [{"changes": list(each.changes), **_plain(each.estimate)} for each in self.proposals],
            "least": None
            if self.least is None
            else {"changes": list(self.least.changes), **_plain(self.least.estimate)},
            "notes": list(self.notes),
        }


def answer(described: Described, settings: Settings, machine: Machine, targets: Sequence[str] = ()) -> Answer:
    """Count, and look for what fits.

    Args:
        described: the model.
        settings: what is asked for.
        machine: where.
        targets: modules that get an adapter; none: the family's own.

    Raises:
        HastenError: the model's shapes cannot be read, or the settings contradict each other.
    """
    facts = facts_of(described.name, described.config, targets)
    found = estimate(facts, settings, machine)
    proposals = [] if found.fits else nearest(facts, settings, machine)
    least = smallest(facts, settings, machine) if not found.fits and not proposals else None
    notes = (*described.notes, *_notes(described, facts, settings, machine))
    return Answer(described, facts, machine, found, tuple(proposals), least, notes)


def _notes(described: Described, facts: Facts, settings: Settings, machine: Machine) -> list[str]:
    notes = []
    experts = sum(weight.values for weight in facts.weights if weight.expert)
    if experts and settings.storage != "plain":
        bits = 4 if settings.storage == "nf4" else 8
        notes.append(
            f"hasten cannot train this model in {bits} bits yet: {experts:,} weights are experts, kept in one tensor "
            f"for each layer, and {settings.storage} is for linear layers; counted in 16 bits, as they are loaded (in "
            f"{bits} bits they would take {said(experts * bits / 8)})"
        )
    if not facts.fast:
        notes.append(f"no fast path ({facts.why_plain}): activations of plain modules are estimated, from above")
    if facts.layout is not None:
        how = "read into 16 bits" if facts.widened else "kept as they are"
        notes.append(f"published in 8-bit floats ({facts.layout.said}); {how}")
    if facts.quantized:
        untrained = "" if facts.quantized.startswith("bitsandbytes") else "; hasten has no test that trains on it"
        notes.append(f"the checkpoint is quantized already ({facts.quantized}){untrained}")
    if settings.full:
        notes.append("full fine-tuning is FastLanguageModel.from_pretrained(..., full_finetuning=True)")
    if 0 < facts.longest < settings.length:
        notes.append(f"the model was made for {facts.longest:,} positions; rows of {settings.length:,} are longer")
    if described.values is not None and not facts.quantized and described.values < facts.values:
        notes.append(f"the files hold {described.values:,} weights, fewer than config.json describes")
    capability = machine.hardware.capability
    if settings.storage == "fp8" and capability is not None and capability < FP8_CAPABILITY:
        notes.append("this card has no 8-bit products; weights in 8 bits are read into 16 when they are used")
    if machine.budget.advice is not None:
        notes.append(machine.budget.advice)
    return notes


def _shown(size: int) -> str:
    return said(size) if size >= GIB // 10 else f"{size / 2**20:.1f} MiB"


def _plain(found: Estimate) -> dict[str, Any]:
    return {
        "settings": dataclasses.asdict(found.settings),
        "parts_bytes": dict(found.parts),
        "total_bytes": found.total,
        "budget_bytes": found.budget,
        "fits": found.fits,
        "activations": {**found.activations.as_dict(), "policies": list(found.policies)},
    }
