"""All adapters' factors copied into their places at once.

A and B are trained in their own dtype (float32, mostly) and live where PEFT put them; the products read them inside the
widened weights (`hasten.blocks.projections`). One copy per factor would be 450 launches for an 8B model, in every
forward. So on a GPU one kernel copies all of them, from a table of addresses; where it cannot (a CPU, factors of
several dtypes), each group copies its own.

The copy comes first in a forward of the model, before anything is looked at, so that the device has work while the
processor looks. A group that has changed since (another adapter, other weights) finds that its operand was not among
the copied ones and copies its own; the next forward has a new table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from hasten.blocks.projections import ProjectionGroup
from hasten.kernels.choice import choose


@dataclass(eq=False)
class FactorWriter:
    """Writes the factors of a model's groups once per forward.

    Args:
        groups: every projection group of the model.
        impl: which kernels run.
    """

    groups: list[ProjectionGroup] = field(default_factory=list)
    impl: str = "auto"
    _written: dict[int, Any] = field(default_factory=dict)
    """Operands whose factors are in place in this forward, by id; empty outside one."""
    _table: Any = None
    _operands: dict[int, Any] = field(default_factory=dict)
    """Operands of the table; it keeps their memory alive, so running it is safe even when one of them is out of use."""

    @contextmanager
    def forward(self) -> Iterator[None]:
        """One forward of the model: what is written in it stays valid until its end."""
        if self._written:  # a forward inside a forward
            yield
            return
        if self._table is not None and any(group.factors for group in self.groups):
            self._table.run()
            self._written = self._operands
        try:
            yield
        finally:
            self._written = {}
            self._renew()

    def wrote(self, operand: Any) -> bool:
        """Whether the operand's factors are in place."""
        return id(operand) in self._written

    def _renew(self) -> None:
        """After a forward in which a group had to write for itself: a table of what is in use now."""
        operands = {id(one): one for group in self.groups if (one := group.in_use) is not None and one.factors}
        if operands.keys() == self._operands.keys() or not operands:
            return
        self._operands, self._table = operands, None
        first = next(iter(operands.values())).factors[0].A
        if choose(self.impl, first) == "triton":
            from hasten.kernels.scaled_copies import scaled_copies

            self._table = scaled_copies.table(list(_copies(list(operands.values()))))


def _copies(operands: Sequence[Any]) -> Iterator[tuple[torch.Tensor, torch.Tensor, float]]:
    """Source, target, factor of every copy."""
    for operand in operands:
        for part in operand.factors:
            yield part.A.detach(), operand.A_PK[part.columns], part.scale
            if operand.B_NP is not None:  # those of 4-bit weights are written with them
                yield part.B.detach(), operand.B_NP[part.rows, part.columns], 1.0
