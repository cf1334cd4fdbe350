"""A curve in the terminal, drawn with braille dots (2 x 4 to a character) or with plain ASCII.

The curve is what was measured: no smoothing, no clipping. Where there are more values than dots, a dot is the mean of
its share, and the plot says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeGuard

# The bits of a braille character by dot row and column.
_BRAILLE = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_MIN_WIDTH, _MIN_HEIGHT = 24, 3


def line_plot(
    values: Sequence[float | None],
    width: int = 72,
    height: int = 12,
    title: str = "",
    *,
    ascii: bool = False,  # noqa: A002
    steps: tuple[int, int] | None = None,
) -> str:
    """Draw one curve.

    Args:
        values: the curve; None, NaN and infinities leave gaps.
        width: columns in all, labels included.
        height: lines of the drawing itself, without title and labels.
        title: a line above it.
        ascii: use ASCII characters only.
        steps: the first and the last step, for the labels; by default 1 and the number of values.

    Returns:
        The lines, without a line end after the last.
    """
    width, height = max(width, _MIN_WIDTH), max(height, _MIN_HEIGHT)
    first, last = steps or (1, len(values))
    finite = [value for value in values if _is_finite(value)]
    if not finite:
        return "\n".join([title] * bool(title) + ["(nothing to plot yet)"])
    pad = _label_width(finite)
    columns = width - pad - 2
    canvas = _Canvas(1, 1) if ascii else _Canvas(2, 4)
    dots, share = _bins(values, canvas.dots_x * columns)
    drawn = [value for value in dots if value is not None]
    low, high = min(drawn), max(drawn)
    flat = high / 2 - low / 2 <= 1e-9 * max(abs(high), abs(low))  # but for rounding
    top, bottom = (high + 1, low - 1) if flat else (high, low)  # a constant runs through the middle
    canvas.fill(columns, height, _heights(dots, bottom, top, canvas.dots_y * height))

    labels = {(height - 1) // 2: high} if flat else {0: high, height - 1: low}
    edge = "|" if ascii else "│"
    corner = "+" + "-" * columns if ascii else "└" + "─" * columns
    lines = [title] if title else []
    for number, row in enumerate(canvas.rows()):
        label = _short(labels[number]) if number in labels else ""
        lines.append(f"{label:>{pad}} {edge}{row}".rstrip())
    lines.append(f"{'':>{pad}} {corner}")
    lines.append(_step_labels(first, last, columns, pad))
    if share > 1:
        lines.append(f"{'':>{pad}}  each dot is the mean of up to {share} steps")
    return "\n".join(lines)


@dataclass
class _Canvas:
    """Characters of `dots_x` by `dots_y` dots each: 2 x 4 for braille, 1 x 1 for ASCII."""

    dots_x: int
    dots_y: int
    cells: list[list[int]] = field(default_factory=list)

    def fill(self, columns: int, rows: int, heights: Sequence[int | None]) -> None:
        """Draw dots at these heights (0 is the bottom), neighbours joined by an upright line."""
        self.cells = [[0] * columns for _ in range(rows)]
        before: int | None = None
        for x, y in enumerate(heights):
            if y is not None:
                for height in _joined(before, y):
                    self._set(x, rows * self.dots_y - 1 - height)
            before = y

    def rows(self) -> Iterator[str]:
        """The lines of characters, top first."""
        for row in self.cells:
            if self.dots_x == 1:
                yield "".join("*" if cell else " " for cell in row)
            else:
                yield "".join(chr(0x2800 + cell) if cell else " " for cell in row)

    def _set(self, x: int, y: int) -> None:
        self.cells[y // self.dots_y][x // self.dots_x] |= _BRAILLE[y % self.dots_y][x % self.dots_x]


def _joined(before: int | None, y: int) -> range:
    if before is None or abs(before - y) <= 1:
        return range(y, y + 1)
    return range(before + 1, y + 1) if before < y else range(y, before)


def _bins(values: Sequence[float | None], dots: int) -> tuple[list[float | None], int]:
    # Few values are spread over the width, many are averaged; both keep first and last at the ends.
    count = len(values)
    if count <= dots:
        places: list[float | None] = [None] * dots
        return _spread(values, places), 1
    means: list[float | None] = []
    for number in range(dots):
        share = values[number * count // dots : (number + 1) * count // dots]
        finite = [value for value in share if _is_finite(value)]
        means.append(math.fsum(finite) / len(finite) if finite else None)
    return means, math.ceil(count / dots)


def _spread(values: Sequence[float | None], places: list[float | None]) -> list[float | None]:
    # Straight lines between neighbours, so that a short run is a curve and not a few lone dots.
    count, dots = len(values), len(places)
    at = [number * (dots - 1) // max(1, count - 1) for number in range(count)]
    for number, (place, value) in enumerate(zip(at, values, strict=True)):
        if not _is_finite(value):
            continue
        places[place] = value
        after = values[number + 1] if number + 1 < count else None
        if _is_finite(after):
            length = at[number + 1] - place
            for offset in range(1, length):
                part = offset / length
                places[place + offset] = value * (1 - part) + after * part
    return places


def _heights(dots: Sequence[float | None], bottom: float, top: float, rows: int) -> list[int | None]:
    # Halves before the difference, so that it stays finite for the largest floats.
    span = top / 2 - bottom / 2
    return [None if dot is None else round((dot / 2 - bottom / 2) / span * (rows - 1)) for dot in dots]


def _label_width(finite: Sequence[float]) -> int:
    return max(len(_short(min(finite))), len(_short(max(finite))), 6)


def _step_labels(first: int, last: int, columns: int, pad: int) -> str:
    left, right = f"step {first:,}", f"step {last:,}"
    if first == last:
        return f"{'':>{pad}}  {left}"
    return f"{'':>{pad}}  {left}{right:>{max(len(right) + 1, columns - len(left))}}"


def _short(value: float) -> str:
    return f"{value:.4g}"


def _is_finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)
