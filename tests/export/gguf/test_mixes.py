"""Which tensor gets which type: as llama-quantize has it, whose tables are kept here and which is asked where it is."""

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from hasten.errors import ConfigError
from hasten.export.gguf.encoders import Type, encode
from hasten.export.gguf.importance import Importance, write_importance
from hasten.export.gguf.mixes import BASE, Chosen, choose, named
from support import judges, random_gguf
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


SMALL = {
    "narrow": SHAPES["narrow"],
    "all types of blocks": Shape(width=256, mlp=256, tied=False),
    "experts": Shape(width=256, mlp=256, experts=8),
}
SAID = re.compile(r"^\[ *\d+/ *\d+\] (\S+) +- \[.*?\], type = +(\w+), size = .*?(?:\((\w+)\))?$", re.MULTILINE)


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


def in_short(types):
    """Types by the kinds of weights, one kind's in the order of layers: ``ffn_down: Q6_K, 2x Q4_K, 2x Q6_K``."""
    kinds: dict[str, list[str]] = {}
    for name in sorted(types, key=lambda name: int(name.split(".")[1]) if name.startswith("blk.") else -1):
        kind = name.removesuffix(".weight").split(".", 2)[-1]
        if not ("norm" in kind or "gate_inp" in kind or "bias" in kind):  # F32 in all files
            kinds.setdefault(kind, []).append(types[name])
    together: dict[str, list[str]] = {}
    for kind, found in kinds.items():
        runs = [(kind_of, len(list(run))) for kind_of, run in itertools.groupby(found)]
        several = [f"{count}x {kind_of}" if count > 1 else kind_of for kind_of, count in runs]
        together.setdefault(runs[0][0] if len(runs) == 1 else ", ".join(several), []).append(kind)
    return "; ".join(f"{' '.join(sorted(those))}: {one}" for one, those in sorted(together.items()))


RECORDED = json.loads(Path(__file__).with_name("llama_quantize.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("label", [label for label in RECORDED if label != "tool"])
def test_types_that_llama_quantize_chose(label):
    for name in BASE:
        for importance in (False, True):
            ours = choose(SHAPES[label].tensors, name, SHAPES[label].model, importance=importance)
            found = {tensor: chosen.kind.name for tensor, chosen in ours.items()}
            rows = RECORDED[label]
            expected = rows.get(f"{name} with importance", rows[name]) if importance else rows[name]
            assert in_short(found) == expected, (name, importance)
            assert all(kind == "F32" for tensor, kind in found.items() if "norm" in tensor or "gate_inp" in tensor)


def test_the_order_does_not_matter():
    shape = SHAPES["narrow and deep"]
    ours = choose(shape.tensors, "q4_k_m", shape.model)
    assert choose(reversed(shape.tensors), "q4_k_m", shape.model) == ours and len(ours) == len(shape.tensors)


def test_rows_that_no_block_fits_stay_16_bit():
    """llama-quantize makes no such file: it refuses a head whose width is no multiple of 32."""
    ours = choose(Shape(width=80, mlp=512).tensors, "q4_k_m", Shape(width=80, mlp=512).model)
    assert ours["token_embd.weight"] == Chosen(Type.F16, instead_of=Type.Q8_0)
    assert ours["blk.0.attn_q.weight"] == Chosen(Type.F16, instead_of=Type.Q4_K)
    assert ours["blk.1.ffn_down.weight"] == Chosen(Type.Q6_K)
    narrow = choose(SHAPES["narrow"].tensors, "q3_k_s", SHAPES["narrow"].model)
    assert narrow["blk.0.ffn_up.weight"] == Chosen(Type.Q4_0, instead_of=Type.Q3_K)


def test_names():
    assert [named(name) for name in ("Q4_K_M", "q4_k", "q3_K", "f16")] == ["q4_k_m", "q4_k_m", "q3_k_m", "f16"]
    with pytest.raises(ConfigError) as caught:
        named("q4_k_n")
    assert "'q4_k_n'" in str(caught.value) and "Did you mean 'q4_k_" in str(caught.value)
    with pytest.raises(ConfigError, match="q4_k_m is a good choice"):
        named("xyz")


@pytest.fixture
def quantizer():
    path = shutil.which("llama-quantize")
    if path is None:
        judges.absent("llama-quantize", "llama.cpp's llama-quantize is not on the PATH")
    return path


def files_of(shape, folder):
    """The F16 file, its values, and an importance matrix for it with its file."""
    values = random_gguf.write(folder / "f16.gguf", shape)
    importance = importance_of(shape)
    write_importance(folder / "importance.gguf", importance)
    return values, importance


def quantize(quantizer, folder, name, importance, *options):
    """What llama-quantize says while it makes ``out.gguf``."""
    given = ["--imatrix", str(folder / "importance.gguf")] if importance else []
    command = [quantizer, *options, *given, str(folder / "f16.gguf"), str(folder / "out.gguf"), name.upper(), "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_type_is_llama_quantizes(shape, quantizer, tmp_path):
    files_of(shape, tmp_path)
    for name in BASE:
        for importance in (False, True):
            said = quantize(quantizer, tmp_path, name, importance, "--dry-run")
            theirs = {line[1]: (line[3] or line[2]).upper() for line in SAID.finditer(said)}
            ours = choose(shape.tensors, name, shape.model, importance=importance)
            assert theirs == {tensor: chosen.kind.name for tensor, chosen in ours.items()}, (name, importance)


@pytest.mark.slow
@pytest.mark.parametrize("label", ["narrow", "all types of blocks", "experts"])
def test_every_byte_is_llama_quantizes(label, quantizer, tmp_path):
    pytest.importorskip("libggml", reason="ggml's encoders are a package of their own")
    shape = SMALL[label]
    values, importance = files_of(shape, tmp_path)
    others = []
    for name in BASE:
        for given in (None, importance):
            quantize(quantizer, tmp_path, name, given is not None)
            theirs = random_gguf.read(tmp_path / "out.gguf")
            for tensor in shape.tensors:
                kind, expected = theirs[tensor.name]
                weights = given.of(tensor) if given else None
                if not np.array_equal(encode(values[tensor.name], kind, weights).reshape(-1), expected):
                    others.append((name, given is not None, tensor.name, kind.name))
    assert others == []
