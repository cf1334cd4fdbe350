"""What types cost is measured on the file, and on text that nothing was chosen by."""

import json

import pytest
import torch

from hasten.export.gguf.write import write_gguf
from hasten.export.weights import PlainFolder
from support import tiny


@pytest.fixture
def case(program):
    return program("cases.export_types")


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    lines = (f"row {number}: the red dog and the green cat say {number * 7919 % 1000}" for number in range(200))
    file.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines), encoding="utf-8")
    return str(file)


def test_types_of_a_tiny_model(case, rows, tiny_model_folder):
    found = case.run(str(tiny_model_folder), rows, "f32,f16,q8_0,q4_0", tokens=256, quantizer="none-of-that-name")
    assert found["llama_quantize"] is False and found["rows"] == ["rows.jsonl"]
    model = found["models"]["model"]
    types = model["types"]
    assert model["moved"] == 0.0 and model["heldout_tokens"] == 256
    assert types["f16"]["nats"] == types["f32"]["nats"] == 0.0
    assert types["f16"]["perplexity"] == model["perplexity"] > 1
    assert 0.0 < types["q8_0"]["nats"] < types["q4_0"]["nats"]
    assert types["f32"]["bits_per_weight"] == 32.0 and types["q4_0"]["bytes"] < types["q8_0"]["bytes"]


@pytest.mark.slow
def test_dynamic_has_its_own_importance(case, rows, tiny_model_folder):
    pytest.importorskip("libggml", reason="ggml's encoders (libggml-python) are not installed")
    found = case.run(str(tiny_model_folder), rows, "dynamic", tokens=256, size="q5_0", quantizer="none-of-that-name")
    arm = found["models"]["model"]["types"]["dynamic"]
    assert arm["nats"] > 0 and arm["survey_s"] > 0 and "llama_quantize" not in arm


def test_blocks_of_16_values_are_moved_and_others_are_not(case, tmp_path):
    model = tiny.llama()
    weight = model.model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        weight.copy_((weight * 50).round().clamp(-7, 8) / 50)
    before = weight.detach().clone()
    weights = PlainFolder(tiny.save_model(tmp_path / "own", model))
    moved, share = case.reference(weights, tmp_path / "moved", True)
    name = "model.layers.0.mlp.up_proj.weight"
    assert share == before.numel() / sum(value.numel() for value in model.parameters())
    assert 0 < (moved.read(name).float() - before).abs().max() <= 15 / 50 / 15 / 2 + 1e-4
    other = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(moved.read(other), weights.read(other).half())
    as_it_is, share = case.reference(weights, tmp_path / "as-it-is", False)
    assert share == 0 and torch.equal(as_it_is.read(name), before.half())


def test_what_two_files_have_in_common(program, tiny_model_folder, tmp_path):
    tool = program("gguf_tool")
    files = {name: tmp_path / f"{name}.gguf" for name in ("f32", "f16", "q8_0")}
    write_gguf(PlainFolder(tiny_model_folder), files)
    assert tool.compared(files["f16"], files["f16"]) == {
        "tensors": 20, "other_types": 0, "other_bytes": 0, "first_other": None
    }  # fmt: skip
    other = tool.compared(files["f16"], files["q8_0"])
    assert other["other_types"] == other["other_bytes"] == 15


def test_bad_arguments(case):
    with pytest.raises(SystemExit, match=r"'q9' is none of f32, .*dynamic"):
        case.run(types="f16,q9")
