"""Rotary scaling: what a configuration says goes into a file and comes out again."""

import numpy as np
import pytest
import torch

from hasten.errors import ModelError
from hasten.export.gguf.write import write_gguf
from hasten.export.weights import PlainFolder
from hasten.loading import gguf
from hasten.loading.gguf_config import configuration
from hasten.loading.gguf_file import open_gguf
from hasten.loading.gguf_names import FORMS
from hasten.loading.gguf_rope import llama3_factors
from support import gguf_models, judges
from support.gguf_judges import WIDE, family_folder, serving

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


def test_a_factor_without_a_kind_is_linear(llama, tmp_path):
    found = read(tmp_path / "x.gguf", llama, fields={"llama.rope.scaling.factor": 4.0})
    assert found == {**ROPE, "rope_type": "linear", "factor": 4.0}
    unused = {
        "llama.rope.scaling.type": "none",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.attn_factor": 1.0,
    }
    assert read(tmp_path / "x.gguf", llama, fields=unused) == {**ROPE, "rope_type": "default"}


@pytest.mark.parametrize(("key", "value"), [("attn_factor", 1.25), ("yarn_log_multiplier", 0.5), ("alpha", 1000.0)])
@pytest.mark.parametrize("extra", [{}, {"rope_freqs.weight": np.ones(32, np.float32)}], ids=["fields", "factors"])
def test_more_than_the_configuration_can_say(llama, tmp_path, key, value, extra):
    key = f"llama.rope.scaling.{key}"
    with pytest.raises(ModelError, match=f"{key} = {value}. .*would change the model. Use the model's Hugging Face"):
        read(tmp_path / "x.gguf", llama, fields={key: value}, extra=extra)


GEMMA = {"head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 8, "num_hidden_layers": 7}
SCALED = {
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24, "rope_theta": 1e6},
}
NEAR = {"rope_type": "default", "rope_theta": 1e4}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SCALED)
def test_gemmas_scaling_is_of_layers_that_see_everything(kind, tmp_path):
    """llama.cpp scales these layers alone, as what is read says: no other reading comes near its predictions."""
    judges.package("xllamacpp")
    from transformers import AutoModelForCausalLM

    rope = {"full_attention": SCALED[kind], "sliding_attention": NEAR}
    sizes = {**WIDE, **GEMMA, "max_position_embeddings": 96}
    folder = family_folder(tmp_path / "model", "gemma3_text", rope_parameters=rope, **sizes)
    file = write_gguf(PlainFolder(folder), {"f16": tmp_path / "x.gguf"})["f16"].path
    model = AutoModelForCausalLM.from_pretrained(
        gguf.model_folder(file, tmp_path / "cache"), dtype=torch.float32
    ).eval()
    assert model.config.rope_parameters == rope
    ids = [5 + number * 7 % 90 for number in range(60)]
    with serving(file) as post:
        answer = post("/completion", prompt=ids, n_predict=1, temperature=0.0, n_probs=131, post_sampling_probs=False)
    said = {each["id"]: each["logprob"] for each in answer["completion_probabilities"][0]["top_logprobs"]}
    assert said.keys() == set(range(131))

    def distance(**changes):
        model.config.rope_parameters = {**rope, **changes}
        other = AutoModelForCausalLM.from_config(model.config).float().eval()
        other.load_state_dict(model.state_dict())
        with torch.no_grad():
            found = other(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        return (found - torch.tensor([said[number] for number in range(131)])).abs().max().item()

    own = distance()
    for changes in (
        {"full_attention": {"rope_type": "default", "rope_theta": 1e6}},
        {"full_attention": next(SCALED[each] for each in SCALED if each != kind)},
        {"sliding_attention": {**SCALED[kind], "rope_theta": 1e4}},
    ):
        assert own < distance(**changes) / 10, changes


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


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_phi_3_has_no_other_scaling(phi3, tmp_path, kind):
    fields = {"phi3.rope.scaling.type": kind, "phi3.rope.scaling.factor": 4.0}
    with pytest.raises(ModelError, match=f"RoPE scaling '{kind}'. Phi-3 has none, or factors for long .*Hugging Face"):
        read(tmp_path / "x.gguf", phi3, fields=fields)


def test_long_contexts_whose_factors_are_gone(phi3, tmp_path):
    with pytest.raises(ModelError, match=r"'longrope' without 'rope_factors_long.weight' and .*Convert it again"):
        read(tmp_path / "x.gguf", phi3, fields={"phi3.rope.scaling.type": "longrope"})
