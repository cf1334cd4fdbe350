"""Shapes are read off the model that transformers makes, without values."""

import pytest

from hasten.blocks.apply import apply, widths_of
from hasten.errors import ConfigErrors, ModelError
from hasten.estimate.facts import facts_of
from support import tiny


def test_a_fast_model():
    model = tiny.llama()
    facts = facts_of("tiny", model.config)
    apply(model)
    found, real = facts.widths, widths_of(model)
    assert (found.hidden, found.query, found.key_value, found.mlp) == (
        real.hidden,
        real.query,
        real.key_value,
        real.mlp,
    )
    assert facts.fast and facts.layers == 2 and facts.vocabulary == 128 and facts.longest == 64
    assert facts.values == sum(parameter.numel() for parameter in model.parameters())
    assert len(facts.adapted) == 14 and (64, 128) in facts.adapted and (128, 64) in facts.adapted


def test_targets_of_ones_own():
    facts = facts_of("tiny", tiny.llama().config, ["q_proj", "v_proj"])
    assert facts.adapted == ((64, 64), (64, 32)) * 2
    with pytest.raises(ConfigErrors, match="q_prj"):
        facts_of("tiny", tiny.llama().config, ["q_prj"])


def test_experts():
    from transformers import AutoConfig

    from hasten.families.base import family_of

    facts = facts_of("moe", AutoConfig.for_model("qwen3_moe", **family_of("qwen3_moe").tiny))
    experts = [weight for weight in facts.weights if weight.expert]
    assert experts and all(weight.shape[0] == 3 and not weight.linear for weight in experts)
    assert facts.widths.mlp == 2 * 24, "a token goes through two experts"
    assert not facts.fast and "no fast path" in facts.why_plain


def test_a_checkpoint_in_4_bits_says_so():
    config = tiny.llama().config
    config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    assert facts_of("tiny", config).quantized == "bitsandbytes 4-bit"


def test_no_language_model():
    from transformers import ViTConfig

    with pytest.raises(ModelError, match="no causal language model of type 'vit'"):
        facts_of("vit", ViTConfig())


def test_sizes_that_no_model_has():
    config = tiny.llama().config
    config.hidden_size = -64
    with pytest.raises(ModelError, match=r"tiny: no causal language model of type 'llama'.*negative dimension -64"):
        facts_of("tiny", config)
