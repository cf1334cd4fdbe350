"""The settings of the data path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hasten.schema import option


@dataclass(kw_only=True)
class DataSettings:
    """Which rows are trained on, and on which of their tokens."""

    source: str = option(
        "python-docs", "a .json or .jsonl file, or 'python-docs': questions about Python's own library"
    )
    heldout: int = option(24, "rows kept out of training to measure the loss on", low=0)
    limit: int = option(0, "use at most this many training rows; 0 is all", low=0)
    max_length: int = option(1024, "longest row in tokens; longer ones are cut at the end", low=8)
    loss_on: Literal["assistant", "last", "all"] = option(
        "assistant", "which tokens are learnt: every assistant turn, the last one, or all tokens"
    )
    seed: int = option(3407, "seed of the split into training and held-out rows", low=0)
