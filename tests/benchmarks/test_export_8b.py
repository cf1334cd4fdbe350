"""The random model is one that exporters and transformers know, and its arms run."""

import os
import time

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hasten.export.hf.base import open_model

SMALL = {"num_hidden_layers": 2, "vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "head_dim": 8}


def test_the_model_has_llamas_weights_and_an_adapter_that_fits(program, tmp_path):
    made = program("random_8b")
    count = made.write_base(tmp_path / "base", torch.float16, **SMALL)
    made.write_adapter(tmp_path / "adapter", tmp_path / "base", rank=4)
    with torch.device("meta"):
        live = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path / "base"))
    opened = open_model(tmp_path / "adapter")
    assert {name: tuple(value.shape) for name, value in live.state_dict().items()} == dict(opened.weights.shapes)
    assert count == sum(value.numel() for value in live.parameters())
    name = "model.layers.1.mlp.down_proj.weight"
    assert not torch.equal(opened.weights.read(name), opened.base.read(name))


def test_shapes_are_those_of_8_billion_weights(program):
    made = program("random_8b")
    assert sum(torch.Size(shape).numel() for shape in made.shapes(made.CONFIG).values()) == 8_030_261_248


def test_what_is_taken_is_seen(program):
    with program("memory").watched() as peak:
        block = torch.ones(50_000_000, dtype=torch.uint8)
        time.sleep(0.2)
        del block
    assert 49_000_000 < peak.above_start_bytes < 80_000_000
    assert program("memory").anonymous_bytes(2**22 + 1) == 0, "no such process"


def test_bad_arguments(program):
    case = program("cases.export_8b")
    with pytest.raises(SystemExit, match=r"'both' is none of merge, ours, theirs"):
        case.run(arms="ours,both")
    with pytest.raises(SystemExit, match=r"there is no 'llama-none'.*leave 'theirs' out"):
        case.run(quantizer="llama-none")
    with pytest.raises(SystemExit, match=r"5000 are asked for"):
        case.run(arms="ours", threads=5000)


@pytest.mark.slow
def test_arms_of_a_small_model(program, tmp_path):
    pytest.importorskip("libggml", reason="ggml's encoders (libggml-python) are not installed")
    cores = os.sched_getaffinity(0)
    told = {
        "layers": 1,
        "vocabulary": 512,
        "width": 512,
        "mlp": 512,
        "threads": 1,
        "rounds": 1,
        "folder": str(tmp_path),
    }
    case = program("cases.export_8b")
    try:
        found = case.run(arms="merge,ours", **told)
        with pytest.raises(SystemExit, match=r"holds a model of another shape"):
            case.run(arms="ours", **{**told, "layers": 2})
    finally:
        os.sched_setaffinity(0, cores)
    assert found["arms"]["merge"]["bytes_median"] == 2 * found["weights"]
    assert found["arms"]["ours"]["above_start_bytes_median"] > 0 and found["compared"] is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base", "shape.json"]
