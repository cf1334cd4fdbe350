"""`hasten data`: what people see before training, and what programs read."""

import json
from pathlib import Path

import pytest

from hasten.cli import main as cli

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


def test_as_json(rows_file, tiny_model_folder, capsys):
    captured = run(capsys, rows_file, "--model", tiny_model_folder, "--rows", "1", "--data.cache=false", "--json")
    told = json.loads(captured.out)
    assert told["ok"] and told["kept"] == 6 and told["skipped"]["empty 'output'"] == {"count": 1, "first": "row 7"}
    assert [piece["text"] for piece in told["preview"][0] if piece["learnt"]] == ["it is 0<|im_end|>"]
    assert "format   alpaca" in captured.err


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


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (["no-such-file.jsonl"], 3, ["no-such-file.jsonl"]),
        (["{rows}", "--max_lenght", "5"], 2, ["max_lenght", "max_length"]),
        (["{rows}", "--template", "zefyr"], 2, ["zefyr", "zephyr"]),
        (["{rows}", "--format", "messages"], 3, ["messages"]),
        (["{rows}", "--model", "{rows}.no"], 4, [".no"]),
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
    told = run(capsys, file, "--model", tiny_model_folder, "--max_length", "32", code=3).err
    assert "nothing to learn in the first 32 tokens: 1 (row 1)" in told and "data.max_length = " in told


COUNTS = {
    "alpaca_en_demo.json": ("alpaca", 999, 999),
    "c4_demo.jsonl": ("text", 300, 300),
    "dpo_en_demo.json": ("preference", 300, 300),
    "glaive_toolcall_en_demo.json": ("conversations", 300, 300),
    "kto_en_demo.json": ("labelled", 300, 150),
}


@pytest.mark.parametrize("name", COUNTS)
def test_real_rows(name, capsys):
    if not (SHARED / name).is_file():
        pytest.skip("the rows of shared/data are not beside this checkout")
    told = json.loads(run(capsys, SHARED / name, "--max_length", "16384", "--cache=false", "--json").out)
    assert (told["format"], told["rows"], told["kept"]) == COUNTS[name]
    assert 0 < told["supervised_tokens"] < told["real_tokens"] and not told["too_long"]["count"]
    assert sum(count for _, count in told["histogram"]) == told["kept"]
    assert not any("None" in piece["text"] for piece in told["preview"][0] if piece["learnt"])
