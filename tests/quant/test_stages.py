"""A model taken apart: the same numbers, one layer at a time on the device."""

import pytest
import torch
from transformers import AutoConfig

from hasten.errors import CapabilityError
from hasten.quant.divergence import logprobs
from hasten.quant.stages import Stages
from support import tiny

CPU = torch.device("cpu")
SHARED = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def own_logprobs(model, windows):
    with torch.no_grad():
        return [model(window[None]).logits[0].log_softmax(-1) for window in windows]


@pytest.mark.parametrize("device", [None, CPU])
@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"tie_word_embeddings": False}),
        ("gemma2", {"sliding_window": 8, "head_dim": 16}),  # two masks, capped logits
        ("gpt_neox", {}),  # attention and MLP side by side
        ("opt", {"ffn_dim": 128, "word_embed_proj_dim": 64}),  # learnt positions
        ("granite", {"logits_scaling": 4.0, "embedding_multiplier": 3.0}),
        ("mixtral", {"num_local_experts": 4}),
        ("falcon_h1", {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16}),  # its layers return tuples
    ],
)
def test_it_computes_what_the_model_computes(kind, fields, device, windows):
    model = tiny.of_config(AutoConfig.for_model(kind, **SHARED, **fields))
    before = dict(model.named_modules())
    apart = list(logprobs(Stages(model, device), windows.heldout))
    for here, own in zip(apart, own_logprobs(model, windows.heldout), strict=True):
        assert torch.equal(here, own)
    assert dict(model.named_modules()) == before, "stand-ins are gone"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("tied", [True, False])
def test_one_stage_at_a_time_is_placed(tied, windows, placed_with):
    model = tiny.llama(tied=tied, num_hidden_layers=3)
    stages = Stages(model, CPU)
    calls = placed_with(model)
    list(logprobs(stages, windows.heldout))
    assert {name for name, _ in calls} == {name for name, one in model.named_modules() if one._parameters}
    head = {"model.norm.weight", "model.embed_tokens.weight" if tied else "lm_head.weight"}
    for name, away in calls:
        if name.startswith("model.layers."):
            prefix = name[: len("model.layers.0.")]
            assert away and all(one.startswith(prefix) for one in away)
        elif name == "lm_head":
            assert away == head
        else:
            assert away and not any(".layers." in one for one in away), name


def test_the_try_places_one_layer_at_a_time_too(placed_with):
    model = tiny.llama(tied=False, num_hidden_layers=3)
    calls = placed_with(model)
    Stages(model, CPU)
    layers = [{one.split(".")[2] for one in away if ".layers." in one} for _, away in calls]
    assert max(map(len, layers)) == 1


def test_nothing_is_copied_where_the_whole_model_is_on_the_device(windows, placed_with):
    model = tiny.llama()
    calls = placed_with(model)
    list(logprobs(Stages(model), windows.heldout))
    assert calls and not any(away for _, away in calls)


def test_layers_that_tell_each_other_more_are_refused(tiny_llama):
    first, second = tiny_llama.model.layers
    first.mlp.register_forward_hook(lambda *given: setattr(second, "told", given[2]))
    second.register_forward_hook(lambda module, _, output: output + module.told)
    with pytest.raises(CapabilityError) as caught:
        Stages(tiny_llama)
    assert "model_type 'llama': layer by layer it computes something else than as a whole." in str(caught.value)
    assert "load_in_4bit=True" in caught.value.remedy
