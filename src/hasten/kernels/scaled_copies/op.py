"""scaled_copies for blocks: a table of copies, made once and run in every forward. It has no gradient: its targets are
operands of products whose own backward knows the sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hasten.kernels.choice import choose
from hasten.kernels.scaled_copies import reference

Copies = Sequence[tuple[torch.Tensor, torch.Tensor, float]]


@dataclass(eq=False)
class Table:
    """Copies whose addresses are on the device."""

    copies: list[tuple[torch.Tensor, torch.Tensor, float]]
    tables: tuple[torch.Tensor, ...] | None

    def run(self) -> None:
        """Every target becomes its source times its factor, as the sources are now."""
        if self.tables is None:
            reference.run(self.copies)
            return
        from hasten.kernels.scaled_copies import triton as kernels

        parts, matrices, factors = self.tables
        kernels.run(parts, matrices, factors, self.copies[0][:2])


def table(copies: Copies, impl: str = "auto") -> Table | None:
    """Make the table.

    Args:
        copies: source ``[R, C]`` contiguous, target ``[R, C]`` with any row stride, factor.
        impl: ``torch``, ``triton``, or ``auto``: Triton on a GPU.

    Returns:
        The table; None where one launch cannot do it: several dtypes or devices, or sources with strides.
    """
    kinds = {(source.dtype, target.dtype, source.device, target.device) for source, target, _ in copies}
    fits = all(source.is_contiguous() and target.stride(1) == 1 for source, target, _ in copies)
    if len(kinds) != 1 or not fits:
        return None
    if choose(impl, copies[0][0]) == "torch":
        return Table(list(copies), None)
    from hasten.kernels.scaled_copies import triton as kernels

    parts, matrices = [], []
    for number, (source, target, _) in enumerate(copies):
        count = source.numel()
        matrices.append((source.data_ptr(), target.data_ptr(), source.shape[1], target.stride(0), count))
        parts += [(number, start) for start in range(0, count, kernels.BLOCK)]
    made: dict[str, Any] = {"device": copies[0][0].device}
    return Table(
        list(copies),
        (
            torch.tensor(parts, dtype=torch.int64, **made),
            torch.tensor(matrices, dtype=torch.int64, **made),
            torch.tensor([factor for _, _, factor in copies], dtype=torch.float32, **made),
        ),
    )
