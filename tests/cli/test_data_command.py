"""`hasten data`: what people see before training, and what programs read."""

import json
import re
from pathlib import Path

import pytest

from hasten import schema
from hasten.cli import main as cli
from hasten.data.settings import DataSettings

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
ROWS = [{"instruction": f"say {number}", "output": f"it is {number}"} for number in range(6)]


@pytest.fixture
def rows_file(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, {"instruction": "a", "output": ""}]), "utf-8")
    return file


def run(capsys, *arguments, code=0):
    with pytest.raises(SystemExit) as left:
        cli.main(["data", *map(str, arguments)])
    captured = capsys.readouterr()
    assert left.value.code == code, captured.err
    return captured


def test_report_and_preview(rows_file, tiny_model_folder, capsys):
    text = run(capsys, rows_file, "--model", tiny_model_folder, "--cache=false").out
    assert "format   alpaca" in text and "rows     6 of 7 used" in text
    assert "left out empty 'output': 1 (row 7)" in text
    assert text.count("\n-- document") == 3 and "⟦it is 0<|im_end|>⟧" in text
    assert "-- document 3 (row 3): " in text and "\x1b" not in text


def test_as_json(rows_file, tiny_model_folder, capsys):
    captured = run(capsys, rows_file, "--model", tiny_model_folder, "--rows", "1", "--data.cache=false", "--json")
    told = json.loads(captured.out)
    assert (
        told["ok"]
        and told["kept"] == 6
        and told["skipped"]["empty 'output'"] == {"count": 1, "row": 6, "first": "row 7"}
    )
    assert [piece["text"] for piece in told["preview"][0] if piece["learnt"]] == ["it is 0<|im_end|>"]
    assert told["packing"]["rows"] == 1 and told["packing"]["documents_most"] == 6
    assert (told["cache_key"], told["from_cache"]) == ("", False)
    assert "format   alpaca" in captured.err


def test_json_has_documents_whole(tmp_path, tiny_model_folder, capsys):
    file, answer = tmp_path / "long.jsonl", "red dog " * 200
    file.write_text(json.dumps({"instruction": "say it", "output": answer}), "utf-8")
    captured = run(capsys, file, "--model", tiny_model_folder, "--no-cache", "--max_length=2048", "--json")
    (told,) = json.loads(captured.out)["preview"]
    assert [piece["text"] for piece in told if piece["learnt"]] == [answer + "<|im_end|>"]
    assert " tokens ...] " in captured.err, "people see the ends of it"


def test_sources_may_stand_anywhere(rows_file, tiny_model_folder, capsys):
    flags = ["--model", tiny_model_folder, "--max-length", "16", "--loss_on=all", "--no-cache", "--json"]
    told = json.loads(run(capsys, *flags[:4], rows_file, *flags[4:], rows_file).out)
    assert (told["rows"], told["max_length"]) == (14, 16)
    short = json.loads(run(capsys, "--data", rows_file, *flags).out)
    assert (short["rows"], short["source"]) == (7, str(rows_file))


def test_settings_by_flag_and_by_file(rows_file, tiny_model_folder, tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(f"model: {{name: {tiny_model_folder}}}\ndata: {{source: {rows_file}, cache: false}}\n", "utf-8")
    told = json.loads(run(capsys, "--config", file, "--loss-on", "all", "--max_length=16", "--json").out)
    assert told["max_length"] == 16 and told["supervised_tokens"] == told["real_tokens"] - told["documents"]
    two = run(capsys, rows_file, rows_file, "--config", file, "--template", "zephyr", "--json").out
    assert json.loads(two)["rows"] == 14


def test_the_cache_is_used(rows_file, tiny_model_folder, tmp_path, capsys, monkeypatch):
    from hasten.training import rows as module

    monkeypatch.setattr(module, "CACHE", tmp_path / "cache")
    assert "prepared now, cache key" in run(capsys, rows_file, "--model", tiny_model_folder).out
    assert "prepared earlier, cache key" in run(capsys, rows_file, "--model", tiny_model_folder).out
    told = json.loads(run(capsys, rows_file, "--model", tiny_model_folder, "--json").out)
    assert told["from_cache"] and (tmp_path / "cache" / "data" / told["cache_key"]).is_dir()


def everything_in(*folders):
    return {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*") if path.is_file()}


def test_nothing_is_written_but_the_cache(rows_file, tiny_model_folder, tmp_path, capsys, monkeypatch):
    from hasten.training import rows as module

    work, cache = tmp_path / "work", tmp_path / "cache"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(module, "CACHE", cache)
    before = everything_in(rows_file.parent, tiny_model_folder, work)
    run(capsys, rows_file, "--model", tiny_model_folder, "--no-cache")
    assert everything_in(tmp_path, tiny_model_folder) == before and not cache.exists()
    run(capsys, rows_file, "--model", tiny_model_folder)
    added = everything_in(tmp_path, tiny_model_folder).keys() - before.keys()
    assert added and all(path.is_relative_to(cache / "data") for path in added)


def test_control_characters_of_rows_are_inert(tmp_path, tiny_model_folder, capsys):
    file = tmp_path / "rows.jsonl"
    odd = {"instruction": "[bold]a\x1b[31m\x07", "output": "b\x9b2J [/] <|im_end|>"}
    file.write_text("".join(json.dumps(row) + "\n" for row in [odd, *ROWS]), "utf-8")
    text = run(capsys, file, "--model", tiny_model_folder, "--no-cache").out
    assert not set(text) & {"\x1b", "\x07", "\x9b"}
    assert "control tokens of the model spelled in rows, kept as text: 1 (row 1)" in text


def test_a_terminal_has_colour_unless_it_is_refused(rows_file, tiny_model_folder, capsys, monkeypatch):
    import sys

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    arguments = [rows_file, "--model", tiny_model_folder, "--no-cache", "--rows", "1"]
    for refused in (False, True):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        if refused:
            monkeypatch.setenv("NO_COLOR", "1")
        text = run(capsys, *arguments).out
        assert ("\x1b[32mit is 0<|im_end|>" in text) is not refused
        assert ("⟦it is 0<|im_end|>⟧" in text) is refused


def test_help_and_documentation_name_every_setting(capsys):
    told = run(capsys, "--help").out
    documented = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `(.*?)` \| (.*) \|$", documented.partition("## Settings")[2], re.MULTILINE)
    settings = [
        (name, repr(value), declared.metadata["help"]) for name, _, value, declared in schema.fields(DataSettings())
    ]
    assert rows == settings
    assert all(f"--{name}  ({value})" in told for name, value, _ in settings)
    assert " data [FILE-OR-ID]... [OPTIONS]" in told


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (["no-such-file.jsonl"], 3, ["no-such-file.jsonl"]),
        (["{rows}", "--max_lenght", "5"], 2, ["max_lenght", "max_length"]),
        (["{rows}", "--template", "zefyr"], 2, ["zefyr", "zephyr"]),
        (["{rows}", "--format", "messages"], 3, ["messages"]),
        (["{rows}", "--model", "{rows}.no"], 4, [".no"]),
        (["{rows}", "--max_length", "many"], 2, ["data.max_length: 'many'", "a whole number"]),
        (["{rows}", "--max_length"], 2, ["--max_length: no value", "Give it a value."]),
        (["{rows}", "--lora.r", "8"], 2, ["--lora: a setting of training", "Remove it."]),
        (["{rows}", "--steps", "8"], 2, ["data.steps: unknown setting"]),
        (["{rows}", "-x"], 2, ["-x: not a flag"]),
        (["{rows}", "--rows", "-1"], 2, ["--rows"]),
        (["{rows}", "--config", "no-such.yaml"], 2, ["no-such.yaml: no such file"]),
    ],
)
def test_bad_input(arguments, code, parts, rows_file, tiny_model_folder, capsys):
    words = [word.replace("{rows}", str(rows_file)) for word in arguments]
    model = [] if "--model" in words else ["--model", str(tiny_model_folder)]
    captured = run(capsys, *words, *model, code=code)
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    for part in parts:
        assert part in captured.err


def test_no_usable_row(tmp_path, tiny_model_folder, capsys):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"instruction": "word " * 60, "output": "yes"}), encoding="utf-8")
    captured = run(capsys, file, "--model", tiny_model_folder, "--max_length", "32", "--no-cache", code=3)
    assert "nothing to learn in the first 32 tokens: 1 (row 1)" in captured.err
    assert captured.err.count("\n") == 1 and "data.max_length = " in captured.err
    assert "-- row 1: " in captured.out and "⟦yes<|im_end|>⟧" in captured.out, "where the answer is"
    as_json = run(capsys, file, "--model", tiny_model_folder, "--max_length", "32", "--no-cache", "--json", code=3)
    assert json.loads(as_json.out)["error"] == "DataError" and "⟦yes<|im_end|>⟧" in as_json.err


COUNTS = {
    "alpaca_en_demo.json": ("alpaca", 999, 999),
    "c4_demo.jsonl": ("text", 300, 300),
    "dpo_en_demo.json": ("preference", 300, 300),
    "glaive_toolcall_en_demo.json": ("conversations", 300, 300),
    "kto_en_demo.json": ("labelled", 300, 150),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS)
def test_real_rows(name, capsys):
    if not (SHARED / name).is_file():
        pytest.skip("the rows of shared/data are not beside this checkout")
    told = json.loads(run(capsys, SHARED / name, "--max_length", "16384", "--cache=false", "--json").out)
    assert (told["format"], told["rows"], told["kept"]) == COUNTS[name]
    assert 0 < told["supervised_tokens"] < told["real_tokens"] and not told["too_long"]["count"]
    assert sum(count for _, count in told["histogram"]) == told["kept"]
    assert not any("None" in piece["text"] for piece in told["preview"][0] if piece["learnt"])
