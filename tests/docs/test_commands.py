"""The documents' commands: every one parses, and those that are marked so run, in order, in an empty folder.

A mark is an HTML comment above a block, which readers do not see:

run         its lines are `hasten` commands; they run here, on a small model under the name `demo`, for two steps
file: NAME  it is written to that file, for the blocks after it
tested: X   a test file of its own runs it
needs: X    it needs what is not here: a GPU, Docker, a server
theirs: X   it is for another tool, for comparison
"""

import io
import re
import sys

import pytest
import torch
import typer
import yaml

from hasten.cli import main as cli
from hasten.cli.data import _sectioned, _sources_and_flags
from hasten.training.config import RunConfig, combine, parse_flags
from support import tiny
from support.documents import ROOT, blocks, commands, inline_commands

DOCS = ROOT / "docs"
MARKED = [DOCS / "dgx-spark.md", DOCS / "ko" / "dgx-spark.md", DOCS / "migrate.md"]
ALL = [ROOT / "README.md", ROOT / "README.ko.md", *sorted(DOCS.rglob("*.md")), *sorted(ROOT.glob("docker/*.md"))]
MARKS = {"run", "file", "tested", "needs", "theirs"}
PROGRAM = typer.main.get_command(cli.app)
STEPS = "2"


def label(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("document", MARKED, ids=label)
def test_every_block_is_marked(document):
    for block in blocks(document):
        place = f"{label(document)}:{block.line}"
        assert block.mark in MARKS, f"{place} has no mark"
        assert bool(block.detail) == (block.mark != "run"), f"{place}: `{block.mark}` says what, `run` does not"
        if block.mark == "tested":
            assert (ROOT / block.detail).is_file(), f"{place}: {block.detail} is gone"
        if block.mark == "run":
            lines = [line for line in block.text.replace("\\\n", " ").splitlines() if line.strip()]
            assert len(commands(block.text)) == len(lines), f"{place}: only `hasten` commands are run"


def faults(words, *, whole):
    """What the program would not understand; `whole`: arguments must be there too."""
    name, *rest = words
    if name.startswith("-"):
        return None
    if name not in PROGRAM.commands:
        return f"there is no command `{name}`"
    command = PROGRAM.commands[name]
    try:
        context = command.make_context(name, list(rest))
    except Exception as error:
        if type(error).__name__ == "Exit" or (type(error).__name__ == "MissingParameter" and not whole):
            return None
        if hasattr(error, "format_message"):
            return error.format_message()
        raise
    first = str(context.params.get("config") or "") if name == "train" else ""
    return field_faults(name, [*([first] if first.startswith("-") else []), *context.args])


def field_faults(name, words):
    """Fields of the configuration that are named as flags."""
    if name == "data":
        combine(_sectioned(parse_flags(_sources_and_flags(words)[1])))
    if name == "train":
        combine(
            parse_flags(words[next((number for number, word in enumerate(words) if word[:2] == "--"), len(words)) :])
        )
    return None


@pytest.mark.parametrize("document", ALL, ids=label)
def test_every_command_parses(document):
    found = [(block.line, words) for block in blocks(document) for words in commands(block.text)
             if block.language in ("sh", "bash", "")]  # fmt: skip
    for line, words in found:
        assert faults(words, whole=True) is None, f"{label(document)}:{line}: hasten {' '.join(words)}"
    for words in inline_commands(document):
        assert faults(words, whole=False) is None, f"{label(document)}: `hasten {' '.join(words)}`"


@pytest.mark.parametrize(
    "words", [["trian"], ["train", "--model", "x", "--lora.rank", "3"], ["export", "x", "--too", "y"]]
)
def test_the_test_itself(words):
    try:
        assert faults(words, whole=True) is not None
    except ValueError as error:  # a field that is not there
        assert "lora.rank" in str(error)


@pytest.fixture
def small(tmp_path):
    """A model that trains in a moment and can be exported: 512 positions, a large head."""
    model = tiny.llama(max_position_embeddings=512)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(10)
    return tiny.save_model(tmp_path / "small", model)


def quick(words, small):
    """The same command on the small model, for a few steps."""
    words = [str(small) if word == "demo" else word for word in words]
    for number, word in enumerate(words[:-1]):
        if word == "--steps":
            words[number + 1] = STEPS
    return words


@pytest.mark.slow
@pytest.mark.parametrize("document", [DOCS / "dgx-spark.md", DOCS / "migrate.md"], ids=label)
def test_commands_run(document, small, tmp_path, monkeypatch, capsys):
    from hasten import cache
    from hasten.cli import cache as shown
    from hasten.training import rows

    for module in (cache, shown, rows):
        monkeypatch.setattr(module, "CACHE", tmp_path / "cache")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    for block in blocks(document):
        if block.mark == "file":
            text = re.sub(r"\bname: demo\b", f"name: {small}", block.text)
            text = re.sub(r'"demo"', repr(str(small)), text)
            text = re.sub(r"\bmax_steps=\d+", f"max_steps={STEPS}", text)
            if block.language == "yaml":
                combine(yaml.safe_load(text))
            (work / block.detail).write_text(text, encoding="utf-8")
        if block.mark != "run":
            continue
        for words in commands(block.text):
            with pytest.raises(SystemExit) as left:
                cli.main(quick(words, small))
            said = capsys.readouterr()
            assert left.value.code == 0, f"hasten {' '.join(words)}: {said.out[-800:]}{said.err[-1500:]}"
    written = {block.detail for block in blocks(document) if block.mark == "file"}
    assert {path.name for path in work.iterdir()} <= {"runs", "exports", "outputs", *written}


def test_both_languages_have_the_same_blocks():
    english, korean = (
        [(block.language, block.text, block.mark, block.detail) for block in blocks(document)]
        for document in (DOCS / "dgx-spark.md", DOCS / "ko" / "dgx-spark.md")
    )
    without = [[re.sub(r"\s*#.*", "", part) for part in block] for block in english]
    assert [[re.sub(r"\s*#.*", "", part) for part in block] for block in korean] == without


def test_headings_are_the_same_in_number():
    counts = [len(re.findall("^## ", document.read_text("utf-8"), re.MULTILINE)) for document in MARKED[:2]]
    assert counts[0] == counts[1]


def test_fields_named_in_tables_exist():
    """`section.field` in the documents is a field of the configuration."""
    known = {name for section in ("model", "data", "lora", "training")
             for name in (f"{section}.{field}" for field in vars(getattr(RunConfig(), section)))}  # fmt: skip
    for document in MARKED:
        named = set(re.findall(r"`((?:model|data|lora|training)\.[a-z_0-9]+)", document.read_text("utf-8")))
        assert len(named) > 3 and named - known - {"data.md"} == set(), label(document)
