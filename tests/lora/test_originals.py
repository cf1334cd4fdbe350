"""The 16-bit files behind a 4-bit model."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from hasten.lora.originals import Originals

WEIGHTS = {"a.weight": torch.tensor([[3.0, 4.0]]), "b.weight": torch.ones(2, 2)}


@pytest.fixture(params=["whole", "shards"])
def folder(request, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    if request.param == "whole":
        save_file(WEIGHTS, tmp_path / "model.safetensors")
        return tmp_path
    for name, weight in WEIGHTS.items():
        save_file({name: weight}, tmp_path / f"{name}.safetensors")
    files = {name: f"{name}.safetensors" for name in WEIGHTS}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return tmp_path


def of(place, **wanted):
    base = SimpleNamespace(name_or_path=str(place), config=SimpleNamespace())
    return Originals.of(base, {f"{name}.weight": shape for name, shape in (wanted or {"a": (1, 2)}).items()})


def test_an_original_takes_the_place_and_the_difference_is_measured(folder):
    found = of(folder)
    kept = torch.tensor([[3.0, 3.0]])
    assert torch.equal(found.weight("a.weight", kept), WEIGHTS["a.weight"])
    assert found.difference == pytest.approx(1 / 5) and found.missing == []


def test_other_names_and_shapes_stay_as_they_are(folder):
    found = of(folder, a=(1, 2), b=(3, 3), c=(1,))
    for name, kept in (("c.weight", torch.ones(1)), ("b.weight", torch.ones(3, 3))):
        assert found.weight(name, kept) is kept
    assert found.missing == ["b.weight", "c.weight"] and found.difference == 0.0
    for _ in range(2):  # what is asked for twice counts once
        found.weight("a.weight", torch.tensor([[3.0, 3.0]]))
    assert found.difference == pytest.approx(1 / 5)
    assert of(folder, c=(1,)) is None  # none at all


def test_a_shard_that_is_gone_has_no_originals(folder):
    for file in folder.glob("a*.safetensors"):
        file.unlink()
    found = of(folder, a=(1, 2), b=(2, 2))
    assert found.missing == (["a.weight"] if (folder / "model.safetensors.index.json").exists() else [])


def test_folders_without_originals(folder, tmp_path):
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "bitsandbytes"}}))
    assert of(folder) is None
    (tmp_path / "empty").mkdir()
    assert of(tmp_path / "empty") is None
    assert of("") is None and of("nobody/never-downloaded") is None and of("no such/place at all") is None
