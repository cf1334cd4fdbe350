import math

import pytest

from hasten.report.plot import line_plot


def drawing(plot: str) -> list[str]:
    """The rows between axis and edge."""
    return [line.split("|", 1)[1] for line in plot.splitlines() if "|" in line]


def test_a_falling_curve_falls_and_its_labels_are_right():
    plot = line_plot([5.0, 4.0, 3.0, 2.0, 1.0], width=40, height=5, title="loss", ascii=True, steps=(10, 50))
    lines = plot.splitlines()
    assert lines[0] == "loss"
    assert lines[1].lstrip().startswith("5 |*")
    assert lines[5].lstrip().startswith("1 |")
    assert lines[5].endswith("*")
    assert lines[-1].split() == ["step", "10", "step", "50"]
    columns = [next(x for x, mark in enumerate(row) if mark == "*") for row in drawing(plot)]
    assert columns == sorted(columns)
    assert len(set(columns)) == 5


@pytest.mark.parametrize("ascii", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2, 72, 144, 145, 1000])
def test_every_length_stays_in_its_box(count, ascii):
    values = [math.sin(number / 50) for number in range(count)]
    plot = line_plot(values, width=72, height=12, title="t", ascii=ascii)
    assert max(len(line) for line in plot.splitlines()) <= 72
    if count:
        assert len(plot.splitlines()) == 15 + ("mean" in plot)
    assert plot.isascii() == (ascii or count == 0)


def test_bins_are_means_and_say_so():
    values = [0.0, 2.0] * 520
    plot = line_plot(values, width=60, ascii=True)
    assert "each dot is the mean of up to 20 steps" in plot
    assert drawing(plot)[5] == "*" * 52  # 1.0 everywhere: no spike of a single step is drawn as the curve


def test_the_first_and_last_bins_are_at_the_ends():
    plot = line_plot([float(number) for number in range(1000)], width=60, height=8, ascii=True)
    rows = drawing(plot)
    assert rows[0].endswith("*")
    assert rows[-1].startswith("*")


def test_constant_and_single_values_run_through_the_labelled_middle():
    for values in ([2.5] * 9, [2.5], [2.5] * 999):
        for ascii in (False, True):
            lines = line_plot(values, height=5, ascii=ascii).splitlines()
            marked = [line for line in lines[:5] if line.rstrip()[-1] not in "|│"]
            assert len(marked) == 1
            assert marked[0].lstrip().startswith("2.5 ")


def test_values_that_are_not_finite_leave_gaps():
    nothing = "(nothing to plot yet)"
    assert line_plot([]) == nothing
    assert line_plot([None, math.nan, math.inf], title="loss") == f"loss\n{nothing}"
    row = drawing(line_plot([1.0, 1.0, None, math.nan, 1.0, 1.0], width=60, height=3, ascii=True))[1]
    assert row.startswith("***")
    assert row.endswith("***")
    assert " " * 20 in row


def test_huge_and_tiny_values():
    assert "1.7e+308" in line_plot([-1.7e308, 1.7e308], ascii=True)
    assert "1e-300" in line_plot([0.0, 1e-300])
