"""Positions: both spellings of configurations, and the factors of those that have some."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from hasten.errors import CapabilityError, ModelError
from hasten.export.gguf.rope import llama3_factors, long_attention, long_factors, rope_of

LLAMA_3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192, "rope_theta": 500000.0,
}  # fmt: skip


def test_both_spellings_say_the_same():
    older = {"rope_theta": 1e6, "rope_scaling": {"type": "yarn", "factor": 4.0}, "original_max_position_embeddings": 99}
    newer = {
        "rope_parameters": {
            "rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6, "original_max_position_embeddings": 99
        }
    }  # fmt: skip
    assert (rope_of(older).kind, rope_of(older).base) == (rope_of(newer).kind, rope_of(newer).base) == ("yarn", 1e6)
    assert rope_of(older).need("original_max_position_embeddings") == 99
    assert rope_of({"rope_theta": 5.0, "rope_scaling": None}).kind == "default"
    assert rope_of({}).base is None


def test_layers_of_two_kinds():
    rope = rope_of(
        {"rope_parameters": {"full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
                             "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"}}}
    )  # fmt: skip
    assert (rope.kind, rope.base, rope.window_base) == ("linear", 1e6, 1e4)


def test_a_kind_that_llama_cpp_does_not_have():
    with pytest.raises(CapabilityError, match=r"rope_type: 'dynamic'. llama.cpp has no.*Export it to Hugging Face"):
        rope_of({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}})


def test_llama_3s_factors_are_those_of_transformers():
    config = LlamaConfig(hidden_size=256, num_attention_heads=2, rope_parameters=LLAMA_3)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1.0 / 500000.0 ** (torch.arange(0, 128, 2) / 128)
    factors = llama3_factors(rope_of({"rope_parameters": LLAMA_3}), 128)
    assert factors.dtype == np.float32 and factors[0] == 1.0 and factors[-1] == 8.0
    np.testing.assert_allclose(plain.numpy() / factors, scaled.numpy(), rtol=2e-6)


def test_a_setting_that_is_missing():
    broken = {name: value for name, value in LLAMA_3.items() if name != "factor"}
    with pytest.raises(ModelError, match=r"rope_parameters.factor: missing in config.json.*'llama3' need it"):
        llama3_factors(rope_of({"rope_parameters": broken}), 128)


def test_long_ropes_factors():
    rope = rope_of({"rope_scaling": {"type": "su", "long_factor": [2.0, 3.0], "short_factor": [1.0, 1.5]}})
    found = long_factors(rope, 2)
    assert rope.kind == "longrope" and found is not None
    assert found["long"].tolist() == [2.0, 3.0] and found["short"].tolist() == [1.0, 1.5]
    assert long_factors(rope_of({}), 2) is None
    with pytest.raises(ModelError, match=r"long_factor: 2 factors. Heads of this model rotate 3 pairs"):
        long_factors(rope, 3)
    assert long_attention(4096, 4096) == 1.0
    assert long_attention(131072, 4096) == pytest.approx(1.1902380714238083)  # Phi-3's published value
