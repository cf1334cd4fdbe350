"""`hasten cache`: shows, asks, empties; and no command writes anywhere else."""

import json

import pytest

from hasten.cli import cache as module
from hasten.cli import main as cli

ROWS = "cd" * 32


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    (folder / "data" / ROWS).mkdir(parents=True)
    (folder / "data" / ROWS / "tokens").write_bytes(b"x" * 2**20)
    monkeypatch.setattr(module, "CACHE", folder)
    return folder


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        cli.main(["cache", *arguments])
    return left.value.code, capsys.readouterr()


def test_show(cache, capsys):
    (cache / "notes.txt").write_text("x", "utf-8")
    code, said = run(capsys)
    assert code == 0
    assert "data" in said.out and "1.0 MiB" in said.out and f"not hasten's, stays: {cache / 'notes.txt'}" in said.out
    told = json.loads(run(capsys, "--json")[1].out)
    assert told["kinds"]["data"] == {"entries": [ROWS], "bytes": 2**20}
    assert told["others"] == [str(cache / "notes.txt")] and told["folder"] == str(cache)


def test_clear_needs_a_yes(cache, capsys):
    code, said = run(capsys, "clear", "--json")
    assert code == 2 and json.loads(said.out)["subject"] == "--yes"
    assert (cache / "data" / ROWS).is_dir()
    code, said = run(capsys, "clear", "--yes", "--json")
    assert code == 0 and json.loads(said.out)["bytes"] == 2**20
    assert not cache.exists()
    assert run(capsys, "clear")[0] == 0, "nothing to ask about"


@pytest.mark.parametrize(("answer", "left"), [("n", True), ("y", False)])
def test_clear_asks_on_a_terminal(cache, capsys, monkeypatch, answer, left):
    import io
    import sys

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal(f"{answer}\n"))
    assert run(capsys, "clear", "data")[0] == 0
    assert cache.exists() is left


@pytest.mark.parametrize("arguments", [["clear", "date"], ["empty"]])
def test_mistakes(cache, capsys, arguments):
    code, said = run(capsys, *arguments)
    assert code == 2 and "error:" in said.err and "Traceback" not in said.err
    assert (cache / "data" / ROWS).is_dir()
