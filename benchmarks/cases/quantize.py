"""What dynamic 4-bit loses, against plain NF4: divergence of the predictions to the 16-bit model's on held-out rows.

    python benchmarks/run.py quantize rows=a.json,b.jsonl [models=demo,FILE.gguf] [budgets=1.10,1.20]

Rows of all files are drawn together; as many tokens as are calibrated on are only measured on.
"""

from __future__ import annotations

import sys
import time
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hasten.cli.quiet import quiet
from hasten.hardware.probe import probe
from hasten.loading.model import LoadOptions
from hasten.plan import choose_dtype
from hasten.quant.checkpoint import Request, quantize_checkpoint
from hasten.quant.dynamic import Quantized, QuantizeSettings


def run(rows: str, models: str = "demo", budgets: str = "1.10", tokens: int = 4096) -> dict[str, Any]:
    """Every model at every budget."""
    quiet()
    hardware = probe()
    dtype, _ = choose_dtype(hardware, "auto")
    arms: dict[str, Any] = {}
    for model in models.split(","):
        for budget in map(float, budgets.split(",")):
            with TemporaryDirectory() as folder:
                request = Request(
                    model=model,
                    output=Path(folder) / "out",
                    settings=QuantizeSettings(budget=budget),
                    sources=tuple(rows.split(",")),
                    tokens=tokens,
                )
                begun = time.perf_counter()
                options = LoadOptions(device=hardware.device, dtype=dtype)
                found = quantize_checkpoint(request, options, lambda text: print(text, file=sys.stderr, flush=True))
                seconds = time.perf_counter() - begun
            name = f"{Path(model).name} {budget:.2f}"
            arms[name] = {**_figures(found), "seconds": seconds}
            print(name, arms[name], file=sys.stderr, flush=True)
    return {"rows": [Path(part).name for part in rows.split(",")], "tokens": tokens, "arms": arms}


def _figures(found: Quantized) -> dict[str, Any]:
    plain = {field.name: getattr(found, field.name) for field in fields(found) if field.name != "projections"}
    assert found.divergence is not None and found.plain_divergence, "the rows have too few tokens to measure on"
    kinds = {kind: sum((part.bits, part.block) == kind for part in found.projections) for kind in ((16, 0), (4, 32))}
    return {
        **plain,
        "bytes_to_plain": found.ratio,
        "divergence_to_plain": found.divergence / found.plain_divergence,
        "projections": len(found.projections),
        "in_16_bit": kinds[16, 0],
        "in_blocks_of_32": kinds[4, 32],
    }
