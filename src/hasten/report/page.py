"""One run as one web page: a file that needs no network, no script and no other file.

Everything shown was written by a job or came out of a model, so all of it is untrusted: the template escapes every
value, charts are geometry computed here and drawn there, and the page forbids itself to load anything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from statistics import median
from typing import Any, TypeGuard, TypeVar

import jinja2

from hasten.errors import RunError
from hasten.files import write_text
from hasten.report.progress import duration
from hasten.runs.folder import RunFolder, plain
from hasten.runs.listing import model_name
from hasten.runs.status import effective_state

T = TypeVar("T")
Point = tuple[float, float | None]

# The drawing's inner box, in the units of its view box.
_WIDTH, _HEIGHT = 440.0, 230.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 54.0, 12.0, 10.0, 36.0
_MOST_POINTS = 360
_GIB = 2**30


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where it is on the page, and its label."""

    at: float
    label: str


@dataclass(frozen=True)
class Dot:
    """A single measurement: its place, and the text shown when pointing at it."""

    x: float
    y: float
    label: str


@dataclass(frozen=True)
class Chart:
    """One chart, as places in its view box.

    Args:
        title: what it shows.
        unit: the unit of the values.
        x_ticks: marks of the steps.
        y_ticks: marks of the values.
        lines: the curve, one list of points for SVG for each piece without a gap.
        bands: from the lowest to the highest of every mean, where the curve is one of means.
        dots: single measurements beside the curve.
        notes: what a reader must know to read it right.
    """

    title: str
    unit: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[str]
    bands: list[str]
    dots: list[Dot]
    notes: list[str]
    width: float = _WIDTH
    height: float = _HEIGHT
    left: float = _LEFT
    right: float = _WIDTH - _RIGHT
    top: float = _TOP
    bottom: float = _HEIGHT - _BOTTOM


def write_page(run: RunFolder) -> Path:
    """Write a run's report.html from what its folder holds now.

    Args:
        run: any run: unfinished, failed, dead, or with files missing or damaged, which the page then says.

    Returns:
        The page's path.

    Raises:
        StorageError: the page could not be written.
    """
    text = resources.files("hasten.report").joinpath("page.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    html = environment.from_string(text).render(_view(run))
    write_text(run.page, plain(html))
    return run.page


def _view(run: RunFolder) -> dict[str, Any]:
    problems: list[str] = []

    def read(reader: Callable[[], T], otherwise: T) -> T:
        try:
            return reader()
        except RunError as error:
            problems.append(f"{error.subject}: {error.value}")
            return otherwise

    record = read(run.record, {})
    status = read(run.status, None)
    rows = read(run.metrics, [])
    samples = read(run.samples, [])
    result = read(run.result, None)
    error = read(run.error, None)
    state = "unknown" if status is None else effective_state(status)
    described = ("header", "config", "versions", "hardware", "hashes", "schema_version", "name")
    return {
        "name": run.name,
        "model": model_name(record),
        "state": state,
        "step": 0 if status is None else status.step,
        "total_steps": 0 if status is None else status.total_steps,
        "message": "" if status is None else status.message,
        "as_of": "" if status is None else _time(status.heartbeat),
        "written": _time(datetime.now(UTC).timestamp()),
        "created": _created(record.get("created")),
        "problems": problems,
        "error": error,
        "figures": _figures(rows),
        "charts": _charts(rows),
        "decisions": [
            {**{key: _text(row.get(key, "")) for key in ("part", "choice", "why")}, "fallback": row.get("fallback")}
            for row in _mappings(record.get("header"))
        ],
        "samples": _pairs(samples),
        "result": _flat(result) if result else [],
        "tables": [
            (title, _flat(value))
            for title, value in (
                ("Run", {key: value for key, value in record.items() if key not in described}),
                ("Settings", record.get("config")),
                ("Versions", record.get("versions")),
                ("Hardware", record.get("hardware")),
                ("Hashes", record.get("hashes")),
            )
            if value
        ],
        "hasten": _text(record.get("hasten", "")),
    }


# --- figures, samples and tables --------------------------------------------------------------------------------------


def _figures(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    losses = [row["loss"] for row in rows if "loss" in row]
    heldout = [row["heldout_loss"] for row in rows if "heldout_loss" in row]
    speeds = [row["supervised_tokens_per_s"] for row in rows if _is_number(row.get("supervised_tokens_per_s"))]
    peaks = [row["peak_bytes"] for row in rows if _is_number(row.get("peak_bytes"))]
    elapsed = [row["elapsed_s"] for row in rows if _is_number(row.get("elapsed_s"))]
    figures: list[tuple[str, str]] = []
    if losses:
        figures.append(("training loss, first → last", f"{_loss(losses[0])} → {_loss(losses[-1])}"))
    if heldout:
        figures.append(("held-out loss, first → last", f"{_loss(heldout[0])} → {_loss(heldout[-1])}"))
    if speeds:
        figures.append(("supervised tokens/s, median", f"{median(speeds):,.0f}"))
    if any(peaks):
        figures.append(("peak memory", f"{max(peaks) / _GIB:,.2f} GiB"))
    if elapsed:
        figures.append(("training time", duration(elapsed[-1])))
    return figures


def _pairs(samples: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The answers by prompt: the one before, the one after, and those in between."""
    by_prompt: dict[str, dict[str, Any]] = {}
    for sample in samples:
        prompt, answer = _text(sample.get("prompt", "")), _text(sample.get("answer", ""))
        pair = by_prompt.setdefault(prompt, {"prompt": prompt, "before": None, "after": None, "steps": []})
        if sample.get("when") in ("before", "after"):
            pair[sample["when"]] = answer
        else:
            pair["steps"].append((_text(sample.get("step", "?")), answer))
    return list(by_prompt.values())


def _flat(value: object, path: str = "") -> list[tuple[str, str]]:
    """Nested settings as rows of a dotted name and a text."""
    if isinstance(value, Mapping) and value:
        return [row for key, item in value.items() for row in _flat(item, f"{path}.{key}" if path else str(key))]
    if isinstance(value, list) and not any(isinstance(item, (list, Mapping)) for item in value):
        return [(path, ", ".join(_text(item) for item in value))]
    return [(path, _text(value))]


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.6g}"
    return json.dumps(value, ensure_ascii=False, indent=1 if isinstance(value, (list, Mapping)) else None)


def _mappings(value: object) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _loss(value: object) -> str:
    return f"{value:.4f}" if _is_number(value) else "not finite"


def _time(seconds: float) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (OverflowError, ValueError, OSError):  # a number that is no time
        return "an unknown time"


def _created(value: object) -> str:
    try:
        return _time(datetime.fromisoformat(str(value)).timestamp()) if value else ""
    except ValueError:
        return _text(value)


def _is_number(value: object) -> TypeGuard[float]:
    # Beyond this, axes overflow, and no figure of a run is meant.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e100


# --- charts -----------------------------------------------------------------------------------------------------------


def _charts(rows: Sequence[Mapping[str, Any]]) -> list[Chart]:
    charts = [
        chart("Loss", "", _points(rows, "loss"), _points(rows, "heldout_loss"), from_zero=False),
        chart("Learning rate", "", _points(rows, "learning_rate")),
        chart("Speed", "supervised tokens/s", _points(rows, "supervised_tokens_per_s")),
        chart("Peak memory", "GiB", _points(rows, "peak_bytes", 1 / _GIB)),
    ]
    return [made for made in charts if made is not None]


def _points(rows: Sequence[Mapping[str, Any]], key: str, factor: float = 1.0) -> list[Point]:
    return [
        (row["step"], row[key] * factor if _is_number(row[key]) else None)
        for row in rows
        if key in row and _is_number(row.get("step"))
    ]


def chart(
    title: str, unit: str, points: Sequence[Point], dots: Sequence[Point] = (), *, from_zero: bool = True
) -> Chart | None:
    """Lay out one chart.

    Args:
        title: what it shows.
        unit: the unit of the values.
        points: the curve as (step, value), by step; None where the value was not finite.
        dots: single measurements beside it.
        from_zero: whether the axis starts at zero, as it must where sizes are compared.

    Returns:
        The chart, or None when nothing can be drawn.
    """
    drawn = [(x, y) for x, y in (*points, *dots) if y is not None]
    if not drawn:
        return None
    steps, values = [x for x, _ in drawn], [y for _, y in drawn]
    x_marks = _marks(min(steps), max(steps), whole=True)
    y_marks = _marks(min(0.0, *values), max(values) or 1.0) if from_zero else _marks(min(values), max(values))
    x_low, x_high = _range(min(steps), max(steps))
    y_low, y_high = y_marks[0], y_marks[-1]

    def place_x(step: float) -> float:
        return round(_LEFT + (step - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT), 1)

    def place_y(value: float) -> float:
        return round(_HEIGHT - _BOTTOM - (value - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM), 1)

    pieces, share = _pieces(points)
    bands: list[str] = []
    if share > 1:
        for piece in pieces:
            above = [f"{place_x(x)},{place_y(high)}" for x, _, _, high in piece]
            below = [f"{place_x(x)},{place_y(low)}" for x, _, low, _ in reversed(piece)]
            bands.append(" ".join(above + below))
    notes = [f"line: means of up to {share} steps; band: their lowest and highest"] if share > 1 else []
    if dots:
        notes.append("● held-out")
    lost = sum(y is None for _, y in points)
    if lost:
        notes.append(f"{lost} value{'s' * (lost > 1)} not finite, left out")
    return Chart(
        title=title,
        unit=unit,
        x_ticks=[Tick(place_x(mark), _label(mark)) for mark in x_marks if x_low <= mark <= x_high],
        y_ticks=[Tick(place_y(mark), _label(mark)) for mark in y_marks],
        lines=[" ".join(f"{place_x(x)},{place_y(mean)}" for x, mean, _, _ in piece) for piece in pieces],
        bands=bands,
        dots=[Dot(place_x(x), place_y(y), f"step {_label(x)}: {y:.4f}") for x, y in dots if y is not None],
        notes=notes,
    )


def _pieces(points: Sequence[Point]) -> tuple[list[list[tuple[float, float, float, float]]], int]:
    """The curve as pieces without gaps of (step, mean, lowest, highest), and how many points a mean is of."""
    share = max(1, math.ceil(len(points) / _MOST_POINTS))
    pieces: list[list[tuple[float, float, float, float]]] = [[]]
    for start in range(0, len(points), share):
        group = [(x, y) for x, y in points[start : start + share] if y is not None]
        if not group:
            pieces.append([])
            continue
        values = [y for _, y in group]
        pieces[-1].append(
            (math.fsum(x for x, _ in group) / len(group), math.fsum(values) / len(values), min(values), max(values))
        )
    return [piece for piece in pieces if piece], share


def _range(low: float, high: float) -> tuple[float, float]:
    if high - low > 1e-9 * max(abs(low), abs(high)):
        return low, high
    pad = abs(low) / 10 or 1.0
    return low - pad, high + pad


def _marks(low: float, high: float, whole: bool = False) -> list[float]:
    """Five to seven round numbers that enclose a range."""
    low, high = _range(low, high)
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw)) if raw > 0 else 1.0
    step = next((power * factor for factor in (1, 2, 2.5, 5) if power * factor >= raw), power * 10)
    if whole:
        step = max(1.0, math.ceil(step))
    first = math.floor(low / step)
    count = math.ceil(high / step) - first
    return [(first + number) * step for number in range(count + 1)]


def _label(value: float) -> str:
    return f"{value:,.6g}" if abs(value) > 1e-300 else "0"
