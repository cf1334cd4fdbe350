"""Bytes written: a bar on a terminal, few lines in a log."""

import io

from rich.console import Console

from hasten.report import bytes_progress as module


def test_a_log_gets_a_line_now_and_then(monkeypatch):
    out, now = io.StringIO(), iter([0.0, 1.0, 20.0, 20.0, 25.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(now))
    with module.bytes_progress(Console(file=out, width=80)) as progress:
        progress("hf", 2**20, 2**22)
        progress("hf", 2**21, 2**22)
        progress("hf", 2**22, 2**22)
    assert out.getvalue() == "hf: 2 of 4 MiB written\n"


def test_a_terminal_gets_a_bar():
    out = io.StringIO()
    with module.bytes_progress(Console(file=out, force_terminal=True, width=80)) as progress:
        progress("gguf", 2**20, 2**22)
        progress("gguf", 2**22, 2**22)
        progress("hf", 1, 2)
    assert "gguf" in out.getvalue()
