"""What was kept at which precision, as lines for a terminal or a log."""

from __future__ import annotations

from hasten.quant.dynamic import Projection, Quantized
from hasten.quant.nf4 import SMALL_BLOCK
from hasten.quant.page import density, kinds_of, precision

_SHOWN = 12


def table(figures: Quantized) -> list[str]:
    """By layer and kind the bits; then the projections that cost most; then the sums.

    Args:
        figures: of a quantized model.
    """
    kinds = kinds_of(figures)
    heads = [kind.rpartition(".")[2] for kind in kinds]
    widths = [max(len(head), 2) for head in heads]
    cells = {
        (projection.layer, projection.kind): f"{projection.bits}{'+' if projection.block == SMALL_BLOCK else ''}"
        for projection in figures.projections
    }
    lines = [
        "bits (4+: in blocks of 32)",
        "layer  " + "  ".join(head.rjust(width) for head, width in zip(heads, widths, strict=True)) + "  bytes",
    ]
    for layer in sorted({projection.layer for projection in figures.projections}):
        row = [cells.get((layer, kind), "-").rjust(width) for kind, width in zip(kinds, widths, strict=True)]
        size = sum(projection.bytes for projection in figures.projections if projection.layer == layer)
        lines.append(f"{layer:5}  " + "  ".join(row) + f"  {size:,}")
    lines += [
        "",
        f"the {min(_SHOWN, len(figures.projections))} most sensitive for their bytes (nats per token in 4 bit):",
    ]
    lines += [_line(projection) for projection in sorted(figures.projections, key=density, reverse=True)[:_SHOWN]]
    lines += [
        f"{projection.name} stays 16 bit: {projection.note}" for projection in figures.projections if projection.note
    ]
    return ["", *lines, "", *_sums(figures)]


def _line(projection: Projection) -> str:
    return f"  {projection.name}: {precision(projection)}, {projection.bytes:,} bytes, {projection.nats:.2e} nats"


def _sums(figures: Quantized) -> list[str]:
    better = sum(projection.bits > 4 and not projection.note for projection in figures.projections)
    lines = [
        f"{figures.bytes:,} bytes of linear weights, {figures.ratio:.4f} of plain NF4 (budget {figures.budget}); "
        f"{better} of {len(figures.projections)} projections keep more than 4 bit"
    ]
    if figures.divergence is None or figures.plain_divergence is None:
        lines.append("no text was left to measure on: give more rows")
        return lines
    lines.append(
        f"{figures.divergence:.4f} nats per token to the original on {figures.heldout_tokens:,} other tokens "
        f"(plain NF4: {figures.plain_divergence:.4f}; {figures.divergence / figures.plain_divergence:.2f} of it)"
    )
    return lines
