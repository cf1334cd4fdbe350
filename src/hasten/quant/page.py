"""What was kept at which precision, as one web page: a heat map by layer and kind. It needs no network and no script.

Names come out of a model, so the template escapes every value, and the page forbids itself to load anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import resources

import jinja2

from hasten.quant.dynamic import Projection, Quantized
from hasten.quant.nf4 import SMALL_BLOCK

_DARKEST, _LIGHTEST = 42, 96
"""Lightness in percent of the most and the least sensitive cell."""


@dataclass(frozen=True)
class Cell:
    """One projection on the map."""

    text: str
    """Its bits, with a plus where blocks are small."""
    title: str
    """Shown when pointing at it."""
    lightness: int
    """Percent."""


def page(model: str, figures: Quantized) -> str:
    """The page's HTML.

    Args:
        model: what was quantized, as its user calls it.
        figures: what came of it.
    """
    text = resources.files("hasten.quant").joinpath("page.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    kinds = kinds_of(figures)
    return environment.from_string(text).render(
        model=model,
        figures=figures,
        kinds=kinds,
        rows=_rows(figures, kinds),
        projections=sorted(figures.projections, key=density, reverse=True),
    )


def kinds_of(figures: Quantized) -> list[str]:
    """Every kind of projection, in the order of the forward."""
    return list(dict.fromkeys(projection.kind for projection in figures.projections))


def density(projection: Projection) -> float:
    """Nats per byte of plain NF4: what is coloured, and what decides."""
    return projection.nats / projection.plain_bytes


def precision(projection: Projection) -> str:
    """Bits and, where there are blocks, their size."""
    return f"{projection.bits} bit" + (f" in blocks of {projection.block}" if projection.block else "")


def _rows(figures: Quantized, kinds: list[str]) -> list[tuple[int, list[Cell | None]]]:
    """Layers from the first to the last; None where a layer has no such projection."""
    positive = [math.log(density(projection)) for projection in figures.projections if projection.nats > 0]
    low, high = (min(positive), max(positive)) if positive else (0.0, 0.0)
    cells = {(projection.layer, projection.kind): _cell(projection, low, high) for projection in figures.projections}
    layers = sorted({projection.layer for projection in figures.projections})
    return [(layer, [cells.get((layer, kind)) for kind in kinds]) for layer in layers]


def _cell(projection: Projection, low: float, high: float) -> Cell:
    share = 0.0
    if projection.nats > 0 and high > low:
        share = (math.log(density(projection)) - low) / (high - low)
    title = f"{projection.name}: {precision(projection)}, {projection.bytes:,} bytes, {projection.nats:.2e} nats"
    if projection.note:
        title += f"; {projection.note}"
    return Cell(
        str(projection.bits) + ("+" if projection.block == SMALL_BLOCK else ""),
        title,
        round(_LIGHTEST - share * (_LIGHTEST - _DARKEST)),
    )
