"""What the processor's part of a step costs: a ragged job of 32 layers so thin that no GPU is what is waited for.

    python benchmarks/run.py launches rows=alpaca.json [arms=hasten,hasten-launched]

`hasten-launched` records and replays nothing.
"""

from __future__ import annotations

from typing import Any

from cases import ragged_8b


def run(rows: str, arms: str = "hasten,hasten-launched", tokenizer: str = "", steps: int = 80) -> dict[str, Any]:
    """The same 16 rows in every step of all arms."""
    return ragged_8b.run(rows=rows, arms=arms, tokenizer=tokenizer, shape="thin", steps=steps, skip=steps * 3 // 4)
