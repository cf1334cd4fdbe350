"""Rotary scaling: what a configuration says goes into a file and comes out again."""

import numpy as np
import pytest

from hasten.errors import ModelError
from hasten.loading.gguf_config import configuration
from hasten.loading.gguf_file import open_gguf
from hasten.loading.gguf_names import FORMS
from hasten.loading.gguf_rope import llama3_factors
from support import gguf_models

ROPE = {"rope_theta": 500000.0}


def read(path, model, **changes):
    gguf_models.write_model(path, model, **changes)
    file = open_gguf(path)
    return configuration(file, FORMS[file.arch]).rope_parameters


@pytest.fixture(scope="module")
def llama():
    return gguf_models.model("llama", rope_parameters={**ROPE, "rope_type": "default"}, max_position_embeddings=8192)


def test_none(llama, tmp_path):
    assert read(tmp_path / "x.gguf", llama) == {**ROPE, "rope_type": "default"}


def test_linear(llama, tmp_path):
    fields = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 0.1 + 3.9}
    assert read(tmp_path / "x.gguf", llama, fields=fields) == {**ROPE, "rope_type": "linear", "factor": 4.0}


def test_yarn(llama, tmp_path):
    fields = {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 2048,
        "llama.rope.scaling.yarn_beta_fast": 24.0,
    }
    assert read(tmp_path / "x.gguf", llama, fields=fields) == {
        **ROPE,
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 2048,
        "beta_fast": 24.0,
    }


# 3.1, 3.2, and two that nobody published.
@pytest.mark.parametrize("scaling", [(8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192), (6.0, 1.0, 6.0, 1000)])
def test_llama3_is_found_from_its_factors(llama, tmp_path, scaling):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    factor, low, high, original = scaling
    expected = {
        **ROPE,
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
    config = LlamaConfig(hidden_size=256, num_attention_heads=4, rope_parameters=dict(expected))
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1.0 / 500000.0 ** (np.arange(0, 64, 2) / 64)
    factors = (plain / scaled.numpy()).astype(np.float32)
    np.testing.assert_allclose(llama3_factors(500000.0, 64, scaling), factors, rtol=2e-6)
    assert read(tmp_path / "x.gguf", llama, extra={"rope_freqs.weight": factors}) == expected


def test_factors_of_one_are_no_scaling(llama, tmp_path):
    found = read(tmp_path / "x.gguf", llama, extra={"rope_freqs.weight": np.ones(32, np.float32)})
    assert found == {**ROPE, "rope_type": "default"}


@pytest.mark.parametrize("factors", [np.linspace(1, 9, 32), np.ones(7)])
def test_factors_of_no_rule_are_refused(llama, tmp_path, factors):
    with pytest.raises(ModelError, match=r"\d+ RoPE factors \('rope_freqs.weight'\).*Llama 3's.*Hugging Face folder"):
        read(tmp_path / "x.gguf", llama, extra={"rope_freqs.weight": factors.astype(np.float32)})


@pytest.mark.parametrize(("kind", "factor"), [("dynamic", 2.0), ("linear", None)])
def test_scaling_that_is_not_known(llama, tmp_path, kind, factor):
    with pytest.raises(ModelError, match=f"RoPE scaling '{kind}' with factor .*Linear and YaRN"):
        read(
            tmp_path / "x.gguf",
            llama,
            fields={"llama.rope.scaling.type": kind, "llama.rope.scaling.factor": factor},
        )


@pytest.fixture(scope="module")
def phi3():
    return gguf_models.model("phi3", original_max_position_embeddings=512, max_position_embeddings=2048)


def test_long_context_factors(phi3, tmp_path):
    short, long = np.linspace(1, 2, 32, dtype=np.float32), np.linspace(1, 9, 32, dtype=np.float32)
    extra = {"rope_factors_short.weight": short, "rope_factors_long.weight": long}
    found = read(tmp_path / "x.gguf", phi3, extra=extra)
    assert found["rope_type"] == "longrope" and found["original_max_position_embeddings"] == 512
    assert np.array_equal(np.float32(found["short_factor"]), short)
    assert np.array_equal(np.float32(found["long_factor"]), long)
    assert "attention_factor" not in found, "what transformers computes itself"
    stated = {"phi3.rope.scaling.attn_factor": 1.5}
    assert read(tmp_path / "x.gguf", phi3, extra=extra, fields=stated)["attention_factor"] == 1.5
    with pytest.raises(ModelError, match="only one of 'rope_factors_long.weight'"):
        read(tmp_path / "x.gguf", phi3, extra={"rope_factors_long.weight": long})
