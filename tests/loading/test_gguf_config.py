"""Configurations from metadata equal those the models were made from; what they cannot say is refused."""

import pytest

from hasten.errors import ModelError
from hasten.loading.gguf_config import configuration
from hasten.loading.gguf_file import open_gguf
from hasten.loading.gguf_names import FORMS, checkpoint_name
from hasten.loading.gguf_numbers import plain
from support import gguf_models

FAMILIES = {
    "llama": {"rms_norm_eps": 1e-5, "tie_word_embeddings": True},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 96},
    "phi3": {"sliding_window": 9, "original_max_position_embeddings": 64},
    "gemma3_text": {"head_dim": 96, "query_pre_attn_scalar": 96, "sliding_window": 8},
}
UNSAID = {"architectures", "dtype", "transformers_version", "_name_or_path"}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_configuration_is_the_models(family, tmp_path):
    model = gguf_models.model(family, **FAMILIES[family])
    gguf_models.write_model(tmp_path / "x.gguf", model)
    file = open_gguf(tmp_path / "x.gguf")
    found, expected = configuration(file, FORMS[file.arch]).to_dict(), model.config.to_dict()
    differing = {name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)}
    assert differing <= UNSAID, {name: (found.get(name), expected.get(name)) for name in differing - UNSAID}


@pytest.fixture(scope="module")
def llama():
    return gguf_models.model("llama")


def refusal(path, model, fields):
    gguf_models.write_model(path, model, fields=fields)
    file = open_gguf(path)
    with pytest.raises(ModelError) as caught:
        configuration(file, FORMS[file.arch])
    return caught.value


@pytest.mark.parametrize(
    ("fields", "value"),
    [
        ({"llama.expert_count": 8}, "llama.expert_count = 8"),
        ({"llama.logit_scale": 2.0}, "llama.logit_scale = 2.0"),
        ({"llama.attention.causal": False}, "llama.attention.causal = False"),
        ({"llama.attention.head_count": [4, 2]}, "llama.attention.head_count = [4, 2]"),
        ({"llama.attention.value_length": 32}, "llama.attention.value_length = 32"),
        ({"llama.rope.dimension_count": 32}, "llama.rope.dimension_count = 32"),
        ({"llama.block_count": None}, "no field 'llama.block_count'"),
        ({"llama.vocab_size": 200}, "200 as vocab_size, but 128 rows of the embedding"),
        ({"tokenizer.ggml.tokens": ["a", "b"]}, "2 tokens, but 128 rows of the embedding"),
    ],
)
def test_what_is_refused(llama, tmp_path, fields, value):
    error = refusal(tmp_path / "x.gguf", llama, fields)
    assert error.value == value
    assert error.remedy.startswith(("Use the model's Hugging Face folder", "Convert it again"))


def test_gemmas_from_ollamas_own_converter(tmp_path):
    model = gguf_models.model("gemma3_text", **FAMILIES["gemma3_text"])
    unsaid = dict.fromkeys(
        f"gemma3.{name}" for name in ("rope.freq_base", "rope.freq_base_swa", "attention.layer_norm_rms_epsilon")
    )
    theirs = {"gemma3.rope.global.freq_base": 5e5, "gemma3.rope.local.freq_base": 2e4}
    current = {"gemma3.rope.freq_base": 3e5, "gemma3.rope.freq_base_swa": 3e4}
    for fields, bases in [
        (unsaid, (1e6, 1e4)),
        ({**unsaid, **theirs}, (5e5, 2e4)),
        ({**unsaid, **theirs, **current}, (3e5, 3e4)),
    ]:
        gguf_models.write_model(tmp_path / "x.gguf", model, fields=fields)
        file = open_gguf(tmp_path / "x.gguf")
        found = configuration(file, FORMS[file.arch])
        kinds = ("full_attention", "sliding_attention")
        assert tuple(found.rope_parameters[kind]["rope_theta"] for kind in kinds) == bases
        assert found.rms_norm_eps == 1e-6


def test_other_architectures_have_no_such_defaults(llama, tmp_path):
    error = refusal(tmp_path / "x.gguf", llama, {"llama.attention.layer_norm_rms_epsilon": None})
    assert error.value == "no field 'llama.attention.layer_norm_rms_epsilon'"
    fields = {"llama.rope.freq_base": None, "llama.rope.global.freq_base": 5e5}
    gguf_models.write_model(tmp_path / "y.gguf", llama, fields=fields)
    file = open_gguf(tmp_path / "y.gguf")
    assert configuration(file, FORMS[file.arch]).rope_parameters["rope_theta"] == 1e4


def test_names():
    assert checkpoint_name("blk.12.attn_q.bias", FORMS["llama"]) == "model.layers.12.self_attn.q_proj.bias"
    assert checkpoint_name("blk.0.ffn_up.weight", FORMS["phi3"]) == "model.layers.0.mlp.gate_up_proj.weight"
    assert checkpoint_name("blk.0.ffn_norm.weight", FORMS["gemma3"]).endswith("pre_feedforward_layernorm.weight")
    assert checkpoint_name("output.weight", FORMS["llama"]) == "lm_head.weight"
    for odd in ("blk.0.ssm_a.weight", "blk.x.attn_q.weight", "attn_q.weight", "output.scale"):
        assert checkpoint_name(odd, FORMS["llama"]) is None


def test_numbers_are_spelled_as_they_were():
    assert (plain(9.999999747378752e-06), plain(500000.0), plain(1.1000000238418579)) == (1e-05, 500000.0, 1.1)
