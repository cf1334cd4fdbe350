"""Bytes of weights are those that the loaders really keep, in every storage."""

import json

import pytest

from hasten.estimate.facts import facts_of
from hasten.estimate.need import ITEM
from hasten.estimate.weights import weight_bytes
from hasten.families.base import all_families
from hasten.loading.model import LoadOptions, load
from support import tiny


def stored(model):
    """Every tensor once: parameters, buffers, and what 4- and 8-bit weights have beside them."""
    found = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        weight = getattr(module, "weight", None)
        state = getattr(weight, "quant_state", None)
        if state is not None:
            found += [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
        scales = getattr(weight, "SCB", None)
        if scales is not None:
            found.append(scales)
    return sum(tensor.nbytes for tensor in {tensor.data_ptr(): tensor for tensor in found}.values())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("storage", "dtype"),
    [("plain", "float32"), ("plain", "bfloat16"), ("nf4", "float32"), ("int8", "bfloat16"), ("fp8", "bfloat16")],
)
def test_as_loaded(storage, dtype, tied, tmp_path):
    if storage in ("nf4", "int8"):
        pytest.importorskip("bitsandbytes", reason="the storage is bitsandbytes'")
    folder = tiny.save_model(tmp_path / "model", tiny.llama(tied=tied, hidden_size=128, intermediate_size=192))
    model = load(str(folder), LoadOptions(dtype=dtype, storage=storage)).model
    facts = facts_of("tiny", model.config)
    assert sum(weight_bytes(facts, storage, ITEM[dtype]).values()) == stored(model)


@pytest.mark.parametrize("family", [each for each in all_families() if each.tiny], ids=lambda each: each.name)
def test_every_family_in_16_bits(family, tmp_path):
    from transformers import AutoConfig

    config = AutoConfig.for_model(family.model_types[0], **family.tiny)
    folder = tiny.save_model(tmp_path / "model", tiny.of_config(config))
    model = load(str(folder), LoadOptions(dtype="bfloat16")).model
    facts = facts_of(family.name, model.config)
    assert sum(weight_bytes(facts, "plain", 2).values()) == stored(model)
    assert facts.layers == 2 and facts.adapted


def test_checkpoints_that_are_published_in_8_bit_floats(tmp_path):
    config = tiny.llama(tied=False, hidden_size=256, intermediate_size=320).config
    plain = sum(weight_bytes(facts_of("x", config), "plain", 2).values())
    config.quantization_config = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    facts = facts_of("x", config)
    linear = [weight for weight in facts.weights if weight.linear]
    values = sum(weight.values for weight in linear)
    scales = sum(-(-weight.shape[0] // 128) * -(-weight.shape[1] // 128) for weight in linear)
    assert facts.layout is not None
    assert sum(weight_bytes(facts, "plain", 2).values()) == plain - values + 4 * scales
    assert json.dumps(weight_bytes(facts, "plain", 2))
