"""Weights where they are computed with, for as long as that takes.

A model that is larger than its device stays on the host; what computes next has copies of its weights on the device.
Only a tensor's data change place: modules, parameters and their names stay what they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def tensors_of(module: nn.Module) -> list[torch.Tensor]:
    """Every parameter and buffer once, however often it is used."""
    return list({id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}.values())


@contextmanager
def placed(tensors: Iterable[torch.Tensor], device: torch.device | None, keep: bool = False) -> Iterator[None]:
    """Copies of tensors on a device, until the block ends.

    On a CPU they are copies too, so that what is right there is right for a device with a memory of its own.

    Args:
        tensors: parameters and buffers.
        device: where to; None leaves them where they are.
        keep: whether changes that the block makes are written back.
    """
    homes = [(tensor, tensor.data) for tensor in tensors] if device is not None else []
    try:
        for tensor, home in homes:
            tensor.data = home.to(device, copy=True)
        yield
        if keep:
            for tensor, home in homes:
                home.copy_(tensor.data)
    finally:
        for tensor, home in homes:
            tensor.data = home


@contextmanager
def lent(values: Mapping[Any, torch.Tensor]) -> Iterator[None]:
    """Other values in parameters, until the block ends; rounded to the parameters' own types.

    Args:
        values: for each parameter.
    """
    own = {parameter: parameter.data for parameter in values}
    try:
        for parameter, value in values.items():
            parameter.data = value.to(parameter.dtype)
        yield
    finally:
        for parameter, value in own.items():
            parameter.data = value
