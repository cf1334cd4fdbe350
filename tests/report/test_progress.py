import io

import pytest
from rich.console import Console

from hasten.report.console import make_console
from hasten.report.progress import TrainingProgress, duration


def lines_of(total: int, steps: range) -> list[str]:
    stream = io.StringIO()
    with TrainingProgress(make_console(stream), total) as progress:
        for step in steps:
            progress.update(step, 1.0 / step, 1234.5)
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("total", [1, 2, 5, 12, 13, 100, 1000, 12345])
def test_a_log_gets_about_a_dozen_lines_with_the_first_and_the_last(total):
    lines = lines_of(total, range(1, total + 1))
    assert min(total, 7) <= len(lines) <= 14
    assert lines[0].startswith(f"step {1:>{len(str(total))}}/{total} ")
    assert f"{total}/{total}" in lines[-1]
    assert len(set(lines)) == len(lines)


def test_a_line_says_loss_speed_and_time_left():
    stream = io.StringIO()
    with TrainingProgress(make_console(stream), 10) as progress:
        progress.update(1, 2.5, 1234.5, eta_s=125)
    assert stream.getvalue() == "step  1/10  loss 2.5000  1,234 tok/s  2m05s left\n"


def test_an_early_end_still_shows_the_last_step():
    lines = lines_of(1000, range(1, 106))
    assert "105/1000" in lines[-1]


def test_steps_may_come_in_jumps_and_start_late():
    assert [line.split("/")[0].split()[-1] for line in lines_of(100, range(50, 101, 10))][0] == "50"
    assert len(lines_of(1000, range(10, 1001, 10))) <= 14


def test_odd_figures_are_shown_not_hidden():
    stream = io.StringIO()
    with TrainingProgress(make_console(stream), 3) as progress:
        progress.update(1, float("nan"), None)
        progress.note("[bold]as it is[/bold]")
        progress.update(2, None, None, eta_s=float("inf"))
    assert stream.getvalue().splitlines() == ["step 1/3  loss nan", "[bold]as it is[/bold]", "step 2/3  loss -"]


def test_a_terminal_gets_a_live_bar_and_the_standard_streams_stay():
    import sys

    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, force_jupyter=False, width=100, color_system=None)
    before = sys.stdout, sys.stderr
    with TrainingProgress(console, 10) as progress:
        assert (sys.stdout, sys.stderr) == before
        progress.update(4, 1.25, 2000.0, eta_s=61)
        progress.note("saved [a] checkpoint")
    text = stream.getvalue()
    assert "4/10" in text
    assert "loss 1.2500  2,000 tok/s  1m01s left" in text
    assert "saved [a] checkpoint" in text
    assert "━" in text


def test_finish_twice_and_without_a_step():
    stream = io.StringIO()
    progress = TrainingProgress(make_console(stream), 3)
    progress.start()
    progress.finish()
    progress.finish()
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0s"), (59.4, "59s"), (60, "1m00s"), (3599.6, "1h00m"), (11220, "3h07m")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
