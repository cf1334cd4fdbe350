"""Progress over rows says nothing of what takes no time."""

import io
import itertools

from hasten.report import rows_progress as module
from hasten.report.console import make_console
from hasten.report.rows_progress import rows_progress


def test_a_log_has_a_line_now_and_then(monkeypatch):
    clock = itertools.count(0, 6)
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    with rows_progress(make_console(stream), 4000) as advance:
        for _ in range(4):
            advance(1000)
    assert stream.getvalue().splitlines() == ["rows: 2,000 of 4,000 prepared", "rows: 4,000 of 4,000 prepared"]


def test_nothing_is_said_of_what_is_quick():
    stream = io.StringIO()
    with rows_progress(make_console(stream), 4000) as advance:
        advance(4000)
    assert stream.getvalue() == ""


def test_a_terminal_has_a_bar_that_goes_away():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with rows_progress(make_console(stream), 10) as advance:
        advance(10)
    assert "rows" in stream.getvalue()
