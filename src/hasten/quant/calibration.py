"""Calibration text: rows become windows of equal length, documents laid end to end in a random order.

Everything a row says counts, not only what would be learnt from it: the model must stay itself on all of it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from hasten.data.prepare import prepare, split
from hasten.data.settings import DataSettings
from hasten.data.sources import open_rows
from hasten.errors import DataError

LENGTH = 512
"""Tokens of a window."""
LEAST_TOKENS = 256
"""Fewer say too little about a model to choose by."""

_LEAST_ROWS, _SHORT_ROW = 256, 16
"""Of a large data set only some rows are read: as many as are enough where a row has 16 tokens."""


@dataclass(frozen=True)
class Windows:
    """Text to measure on; windows of int64 ``[T]``."""

    calibration: tuple[torch.Tensor, ...]
    """What is chosen by."""
    heldout: tuple[torch.Tensor, ...]
    """What is only measured on; empty where the rows fill one window."""

    @property
    def length(self) -> int:
        """T."""
        return len(self.calibration[0])


def read_windows(sources: list[str], tokenizer: Any, tokens: int, longest: int, rows: Any = None) -> Windows:
    """Calibration windows and others to measure on: as many, or at least a fifth of all where rows are few.

    Args:
        sources: files, folders or data sets, as in `DataSettings.source`.
        tokenizer: the model's own.
        tokens: how many to calibrate on.
        longest: positions that the model has.
        rows: rows of a program's instead of `sources`.

    Raises:
        ConfigError, DataError: as `hasten.data.sources.open_rows` and `hasten.data.prepare.prepare`, or too few tokens.
    """
    length = min(LENGTH, longest, tokens)
    settings = DataSettings(source=sources, loss_on="all", max_length=max(length, 8), too_long="split", cache=False)
    some = replace(settings, heldout=0, limit=max(_LEAST_ROWS, 2 * tokens // _SHORT_ROW))
    documents = prepare(split(open_rows(settings, rows), some)[0], tokenizer, settings).documents
    order = list(range(len(documents)))
    random.Random(settings.seed).shuffle(order)  # files may be sorted, and several sources follow one another
    together = np.concatenate([documents.of(number)[0] for number in order])
    ids = torch.from_numpy(together[: 2 * tokens].astype(np.int64))
    if len(ids) < LEAST_TOKENS:
        raise DataError(
            "the calibration rows",
            f"{len(ids)} tokens",
            f"At least {LEAST_TOKENS} are needed to tell which weights matter.",
            "Add rows of the kind that the model will see.",
        )
    windows = ids[: len(ids) // length * length].split(length)
    calibrating = max(1, min(tokens // length, len(windows) - max(1, len(windows) // 5)))
    return Windows(tuple(windows[:calibrating]), tuple(windows[calibrating:]))
