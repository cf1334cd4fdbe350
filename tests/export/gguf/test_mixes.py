"""Which tensor gets which type: as llama-quantize has it, whose tables are kept here and which is asked where it is."""

import shutil
import subprocess

import numpy as np
import pytest

from hasten.export.gguf.encoders import encode
from hasten.export.gguf.importance import Importance, write_importance
from hasten.export.gguf.mixes import BASE, choose
from support import random_gguf
from support.random_gguf import Shape

SHAPES = {
    "narrow": Shape(width=64, mlp=128, heads=4, key_value_heads=1),
    "narrow and deep": Shape(layers=30, width=64, mlp=256, heads=4, tied=False),
    "one head each": Shape(layers=8, heads=4, key_value_heads=4, tied=False),
    "four share one": Shape(layers=8, mlp=768, width=512),
    "eight share one": Shape(layers=30, heads=8, key_value_heads=1, tied=False),
    "rows of 576": Shape(layers=30, width=576, mlp=1536, heads=9, key_value_heads=3),
    "70B": Shape(layers=80, heads=8, key_value_heads=1, mlp=256, tied=False, vocabulary=32),
    "65B": Shape(layers=80, heads=8, key_value_heads=8, mlp=256, tied=False, vocabulary=32),
    "Qwen2 of 80 layers": Shape("qwen2", layers=80, heads=8, key_value_heads=8, mlp=256, tied=False, vocabulary=32),
    "Qwen2": Shape("qwen2", layers=8, heads=8, key_value_heads=2),
    "Phi-3": Shape("phi3", layers=8, heads=8, key_value_heads=8, tied=False),
    "Phi-3, few share one": Shape("phi3", layers=30, heads=8, key_value_heads=2, tied=False),
    "Mixtral": Shape(layers=8, experts=8, tied=False),
    "four experts": Shape(layers=8, experts=4, tied=False),
}


def importance_of(shape, seed=1):
    """Random, of every matrix in a layer that is multiplied with; other experts have met other counts, one none."""
    random = np.random.default_rng(seed)
    sums, counts = {}, {}
    for tensor in shape.tensors:
        if tensor.name.startswith("blk.") and len(tensor.shape) > 1:
            experts = tensor.shape[0] if len(tensor.shape) == 3 else 1
            counts[tensor.name] = random.integers(1, 900, experts).astype(np.float32)
            if experts > 1:
                counts[tensor.name][1] = 0
            drawn = random.lognormal(0, 2, (experts, tensor.shape[-1])) * counts[tensor.name][:, None]
            sums[tensor.name] = drawn.astype(np.float32) if experts > 1 else drawn.astype(np.float32)[0]
    return Importance(sums, counts, ("random",), 512)


@pytest.fixture
def quantizer():
    path = shutil.which("llama-quantize")
    if path is None:
        pytest.skip("llama.cpp's llama-quantize is not on the PATH")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_as_llama_quantize_chooses_and_encodes(shape, quantizer, tmp_path):
    pytest.importorskip("libggml", reason="ggml's encoders are a package of their own")
    values = random_gguf.write(tmp_path / "f16.gguf", shape)
    importance = importance_of(shape)
    write_importance(tmp_path / "importance.gguf", importance)
    others = []
    for name in BASE:
        for given in (None, importance):
            option = ["--imatrix", str(tmp_path / "importance.gguf")] if given else []
            command = [quantizer, *option, str(tmp_path / "f16.gguf"), str(tmp_path / "out.gguf"), name.upper(), "2"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            theirs = random_gguf.read(tmp_path / "out.gguf")
            ours = choose(shape.tensors, name, shape.model, importance=given is not None)
            assert {each: kind for each, (kind, _) in theirs.items()} == {
                each: chosen.kind for each, chosen in ours.items()
            }, (name, given is not None)
            for tensor in shape.tensors:
                kind, expected = theirs[tensor.name]
                weights = given.of(tensor) if given else None
                if not np.array_equal(encode(values[tensor.name], kind, weights).reshape(-1), expected):
                    others.append((name, given is not None, tensor.name, kind.name))
    assert others == []
