"""Signals: the first asks, the second ends, a hang-up is nothing."""

import os
import signal
import sys

import pytest

from hasten.report.console import make_console
from hasten.runs.folder import RunFolder
from hasten.training.signals import job_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_asks_second_ends(tmp_path, capsys, number):
    run = RunFolder.create(tmp_path, "run")
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), job_signals(run, make_console(sys.stdout)):
        os.kill(os.getpid(), number)
        assert (run.control / "stop").exists()
        assert "with a checkpoint" in capsys.readouterr().out
        os.kill(os.getpid(), number)
        pytest.fail("the second signal must end the block")
    assert signal.getsignal(number) == before


def test_a_hang_up_is_ignored(tmp_path):
    run = RunFolder.create(tmp_path, "run")
    with job_signals(run, make_console(sys.stdout)):
        os.kill(os.getpid(), signal.SIGHUP)
    assert not (run.control / "stop").exists()
