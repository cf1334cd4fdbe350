"""`hasten quantize`: what people see, what programs read, and how it refuses."""

import json

import pytest

from hasten.cli import main as cli


@pytest.fixture
def calibration_file(tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"text": f"{number} the red dog and the green cat, one two three, say blue"} for number in range(60)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file


def run(capsys, *arguments, code=0):
    with pytest.raises(SystemExit) as left:
        cli.main(["quantize", *map(str, arguments)])
    captured = capsys.readouterr()
    assert left.value.code == code, captured.err
    return captured


def test_a_folder_and_a_table(tiny_model_folder, calibration_file, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = ["--output", output, "--bits", "4", "--budget", "1.3", "--data", calibration_file, "--tokens", "256"]
    text = run(capsys, tiny_model_folder, *arguments).out
    assert "reading rows\n" in text and "\nlayer  q_proj  k_proj  v_proj" in text
    assert "of plain NF4 (budget 1.3)" in text and "nats per token to the original on 256 other tokens" in text
    assert f"The model is in {output}; the map is {output / 'quantization.html'}." in text
    assert (output / "quantization.html").is_file() and (output / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("flag", "streamed", "line"),
    [
        ("--stream", True, "weights: one layer at a time on "),
        ("--no-stream", False, "weights: all on "),
    ],
)
def test_one_layer_at_a_time_or_all(flag, streamed, line, tiny_model_folder, calibration_file, tmp_path, capsys):
    arguments = ["--output", tmp_path / "out", "--data", calibration_file, "--tokens", "256", flag, "--json"]
    captured = run(capsys, tiny_model_folder, *arguments)
    assert line in captured.err and "(asked for)" in captured.err
    assert json.loads(captured.out)["streamed"] is streamed


def test_as_json(tiny_model_folder, calibration_file, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = [tiny_model_folder, "--output", output, "--data", calibration_file, "--tokens", "256", "--json"]
    captured = run(capsys, *arguments)
    told = json.loads(captured.out)
    assert told["ok"] and told["output"] == str(output) and told["ratio"] <= told["budget"] == 1.1
    assert len(told["projections"]) == 14 and told["divergence"] < told["plain_divergence"]
    assert told["projections"][0].keys() >= {"name", "layer", "kind", "bits", "bytes", "nats"}
    assert "layer  q_proj" in captured.err


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (["{model}", "--output", "{new}", "--bits", "8"], 2, ["bits: 8", "Leave it at 4."]),
        (["{model}", "--output", "{new}", "--budget", "0.9"], 2, ["budget: 0.9", "from 1.0"]),
        (["{model}", "--output", "{model}"], 2, ["output: ", "is there already"]),
        (["{model}", "--output", "{new}", "--tokens", "1"], 2, ["tokens: 1"]),
        (["{model}", "--output", "{new}", "--data", "no-such.jsonl"], 3, ["no-such.jsonl: no such file"]),
        (["{model}.no", "--output", "{new}"], 4, [".no: no such file or folder"]),
        (["{model}", "--output", "{model}/config.json/x"], 6, ["is a file"]),
        (["{model}"], 2, ["--output"]),
    ],
)
def test_bad_input(arguments, code, parts, tiny_model_folder, tmp_path, capsys):
    places = {"model": tiny_model_folder, "new": tmp_path / "new"}
    captured = run(capsys, *(word.format(**places) for word in arguments), code=code)
    assert captured.err.startswith("error: ") or "\nerror: " in captured.err
    for part in parts:
        assert part in captured.err
    assert not (tmp_path / "new").exists()


def test_errors_as_json(tiny_model_folder, tmp_path, capsys):
    captured = run(capsys, tiny_model_folder, "--output", tmp_path / "new", "--bits", "3", "--json", code=2)
    told = json.loads(captured.out)
    assert (told["ok"], told["error"], told["subject"], told["value"]) == (False, "ConfigError", "bits", "3")
