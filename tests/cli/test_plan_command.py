"""`hasten plan`: what people see, what programs read, and how it refuses."""

import json
from pathlib import Path

import pytest

from hasten.cli import main as cli

HERE = Path(__file__).parents[1] / "estimate"
SPARK = HERE.parent / "hardware" / "probes" / "spark-page-cache.json"


def run(capsys, *arguments, code=0):
    with pytest.raises(SystemExit) as left:
        cli.main(["plan", *map(str, arguments)])
    captured = capsys.readouterr()
    assert left.value.code == code, captured.err
    return captured


def test_on_a_recorded_machine(capsys):
    text = run(capsys, HERE / "models" / "llama-3.1-8b.json", "--machine", SPARK, "--rank", 32).out
    assert "machine: NVIDIA GB10: 107.4 GiB" in text and "asked: LoRA r32, weights plain, 4 x 2,048 tokens" in text
    assert "adapter (rank 32)" in text and "together" in text and text.rstrip().splitlines()[-1].startswith("fits: ")


def test_what_would_fit_a_small_card(capsys):
    arguments = [HERE / "models" / "llama-3.1-8b.json", "--memory", "12GB", "--json"]
    told = json.loads(run(capsys, *arguments).out)
    assert told["ok"] and not told["fits"] and told["proposals"]
    assert all(each["fits"] and each["total_bytes"] <= 12e9 for each in told["proposals"])
    assert any("--storage nf4" in word for word in told["proposals"][0]["changes"])


def test_on_this_machine(tiny_model_folder, capsys):
    told = json.loads(run(capsys, tiny_model_folder, "--length", 64, "--batch", 2, "--json").out)
    assert told["fits"] and told["values"] == told["files"]["values"]
    assert told["machine"]["budget"]["rule"]


def test_refusals(tiny_model_folder, capsys):
    refused = run(capsys, tiny_model_folder, "--machine", SPARK, "--memory", "24GB", code=2)
    assert "Leave out one of the two" in refused.err
    assert "Quantized weights are frozen" in run(capsys, tiny_model_folder, "--full", "--storage", "nf4", code=2).err
    assert "such as 24GB" in run(capsys, tiny_model_folder, "--memory", "much", code=2).err
    missing = run(capsys, tiny_model_folder / "none", "--json", code=4)
    assert json.loads(missing.out)["ok"] is False
