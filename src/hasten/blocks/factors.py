"""All adapters' factors copied into their places at once.

A and B are trained in their own dtype (float32, mostly) and live where PEFT put them; the products read them inside the
widened weights (`hasten.blocks.projections`). One copy per factor would be 450 launches for an 8B model, in every
forward. So on a GPU one kernel copies all of them, from a table of addresses; where it cannot (a CPU, factors of several
dtypes), each group copies its own.

The first layer that runs in a forward of the model writes for all of them: factors do not change within a forward.
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
    _within: bool = False
    _done: bool | None = None
    """Whether all are written in this forward; None: nobody has asked yet."""
    _key: list[int] = field(default_factory=list)
    _kept: list[Any] = field(default_factory=list)
    _table: Any = None

    @property
    def looked(self) -> bool:
        """Whether every group has noticed its changes in this forward."""
        return self._done is not None

    @contextmanager
    def forward(self) -> Iterator[None]:
        """One forward of the model: what is written in it stays valid until its end."""
        if self._within:  # a forward inside a forward
            yield
            return
        self._within, self._done = True, None
        try:
            yield
        finally:
            self._within, self._done = False, None

    def wrote(self, group: ProjectionGroup) -> bool:
        """Whether the group's factors are in place; writes those of all groups on the first question."""
        if not self._within:
            return False
        if self._done is None:
            self._done = self._write([one for one in self.groups if one.refusal() is None and one.factors])
        return self._done

    def _write(self, groups: Sequence[ProjectionGroup]) -> bool:
        first = groups[0].factors[0].A
        if choose(self.impl, first) != "triton":
            return False
        from hasten.kernels.scaled_copies import scaled_copies

        operands = [group.prepared() for group in groups]
        key = [id(operand) for operand in operands]  # a group whose addresses change has a new operand
        if key != self._key:
            self._key, self._kept = key, operands
            self._table = scaled_copies.table(list(_copies(operands)))
        if self._table is None:
            return False
        self._table.run()
        return True


def _copies(operands: Sequence[Any]) -> Iterator[tuple[torch.Tensor, torch.Tensor, float]]:
    """Source, target, factor of every copy."""
    for operand in operands:
        widened = operand.weight_NKP[:, operand.width :]
        for part in operand.factors:
            yield part.A.detach(), operand.A_PK[part.columns], part.scale
            yield part.B.detach(), widened[part.rows, part.columns], 1.0
