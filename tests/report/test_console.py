import io
import os
import subprocess
import sys

import pytest
from rich.table import Table

from hasten.report.console import SurvivingStream, has_blocks, make_console, representable

JOB = """
import sys
from hasten.report.console import make_console
console = make_console(sys.stdout)
for number in range(200):
    console.print("line", number, "of a text that fills the pipe" * 25)
sys.stderr.write("the job is done")
"""

# With unbuffered output, nothing would be left for the flush at exit, and the tests could not fail.
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


@pytest.mark.skipif(sys.platform == "win32", reason="pipes differ")
def test_a_job_outlives_the_reader_of_its_pipe():
    job = subprocess.Popen([sys.executable, "-c", JOB], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=BUFFERED)
    assert job.stdout is not None
    assert job.stderr is not None
    assert job.stdout.readline().startswith(b"line 0")
    job.stdout.close()
    errors = job.stderr.read()
    job.stderr.close()
    assert (job.wait(timeout=60), errors) == (0, b"the job is done")


@pytest.mark.skipif(sys.platform == "win32", reason="pipes differ")
def test_text_left_in_the_buffer_does_not_spoil_the_exit_code():
    code = """
import sys, time
from hasten.report.console import make_console
sys.stdin.readline()
make_console(sys.stdout).print("short")
sys.stderr.write("the job is done")
"""
    job = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=BUFFERED,
    )
    assert job.stdout is not None
    job.stdout.close()
    job.stdout = None
    _, errors = job.communicate(b"go\n", timeout=60)
    assert (job.returncode, errors) == (0, b"the job is done")


def test_a_full_disk_behind_the_output_ends_only_the_output(tmp_path):
    try:
        stream = open("/dev/full", "w")  # noqa: SIM115
    except OSError:
        pytest.skip("needs /dev/full")
    with stream:
        console = make_console(stream)
        console.print("x")
        console.print("y")
        assert isinstance(console.file, SurvivingStream)
        assert console.file.lost


class Refusing(io.StringIO):
    """A stream whose writes fail a number of times."""

    def __init__(self, faults: list[Exception]) -> None:
        super().__init__()
        self.faults = faults

    def write(self, text: str, /) -> int:
        if self.faults:
            raise self.faults.pop(0)
        return super().write(text)


def test_after_the_first_loss_all_text_is_dropped():
    stream = Refusing([OSError(5, "Input/output error")])
    console = make_console(stream)
    console.print("one")
    console.print("two")
    assert stream.getvalue() == ""


def test_a_slow_reader_loses_only_the_text_it_had_no_room_for():
    stream = Refusing([BlockingIOError(11, "Resource temporarily unavailable")])
    surviving = SurvivingStream(stream)
    surviving.write("one")
    surviving.write("two")
    assert stream.getvalue() == "two"


def test_a_closed_stream_is_no_reader():
    stream = io.StringIO()
    console = make_console(stream)
    stream.close()
    console.print("nobody reads this")
    assert make_console(stream).is_terminal is False


def test_our_own_faults_are_not_swallowed():
    with pytest.raises(ValueError, match="ours"):
        SurvivingStream(Refusing([ValueError("ours")])).write("text")


def test_an_ascii_stream_gets_ascii():
    raw = io.BytesIO()
    console = make_console(io.TextIOWrapper(raw, encoding="ascii"))
    table = Table("name", "value")
    table.add_row("bar █▌ … “x” 한", "[red]markup")
    console.print(table)
    text = raw.getvalue().decode("ascii")
    assert '## ... "x" ?' in text
    assert "+--" in text
    assert not has_blocks(console)


def test_only_what_an_encoding_lacks_is_replaced():
    assert representable("“한” █ …", "utf-8") == "“한” █ …"
    assert representable("“한” █ …", "cp1252") == "“?” # …"
    assert representable("“é”", "no such encoding") == '"?"'
    assert representable("half \ud83d █", "utf-8") == "half ? █"


def test_text_in_memory_is_utf8_and_no_terminal():
    stream = io.StringIO()
    console = make_console(stream)
    console.print("[bold]한 █[/bold]")
    assert stream.getvalue() == "한 █\n"
    assert (console.is_terminal, has_blocks(console)) == (False, True)


def test_the_console_does_not_depend_on_the_environment(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    make_console(stream).print("[red]x[/red]")
    assert stream.getvalue() == "x\n"
