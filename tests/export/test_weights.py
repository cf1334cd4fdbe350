"""Weights of a plain folder, one at a time."""

import json

import pytest
import torch
from safetensors.torch import load_file

from hasten.errors import ModelError
from hasten.export.weights import PlainFolder
from hasten.files import write_json
from support import tiny


@pytest.fixture(params=["1GB", "60KB"])
def folder(request, tmp_path):
    tiny.llama().save_pretrained(tmp_path / "model", max_shard_size=request.param)
    return tmp_path / "model"


def test_every_weight_as_the_files_have_it(folder):
    weights = PlainFolder(folder)
    expected = {name: value for file in weights.files for name, value in load_file(file).items()}
    assert {name: tuple(value.shape) for name, value in expected.items()} == dict(weights.shapes)
    assert all(torch.equal(weights.read(name), value) for name, value in expected.items())
    assert weights.config["model_type"] == "llama"


def test_a_shard_that_is_missing_or_damaged(folder):
    file = PlainFolder(folder).files[-1]
    file.write_bytes(b"no")
    with pytest.raises(ModelError, match=rf"{file.name}: it cannot be read.*Copy it again"):
        _ = PlainFolder(folder).shapes
    file.unlink()
    with pytest.raises(ModelError, match=rf"{file.name}: it is not there.*all of its shards"):
        _ = PlainFolder(folder).shapes


def test_a_shard_of_another_folder(folder):
    for file in PlainFolder(folder).files:
        file.unlink()
    write_json(folder / "model.safetensors.index.json", {"weight_map": {"a": "../secret.safetensors"}})
    with pytest.raises(ModelError, match=r"it names '../secret.safetensors'.*own folder"):
        _ = PlainFolder(folder).files


@pytest.mark.parametrize("index", [{}, {"weight_map": None}, {"weight_map": ["a"]}, {"weight_map": {"a": 1}}], ids=str)
def test_an_index_that_names_no_files(tmp_path, index):
    write_json(tmp_path / "config.json", {"model_type": "llama"})
    write_json(tmp_path / "model.safetensors.index.json", index)
    with pytest.raises(ModelError, match=r"index.json: it has no weight_map of file names.*Copy it again"):
        _ = PlainFolder(tmp_path).files


def test_quantized_weights_and_no_configuration(folder):
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, "quantization_config": {"quant_method": "bitsandbytes"}})
    with pytest.raises(ModelError, match="its weights are quantized.*quantized from"):
        PlainFolder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"it has no config.json"):
        PlainFolder(folder)
