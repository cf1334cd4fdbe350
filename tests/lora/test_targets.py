"""A14's first half: every requested target matches something, and misspelt ones are refused by name."""

import pytest

from hasten.errors import ConfigErrors
from hasten.families.base import ATTENTION_AND_MLP, GENERIC, family_of
from hasten.lora.targets import all_linear, resolve_targets


def test_misspelt_target_is_refused_with_the_nearest_name(tiny_llama):
    with pytest.raises(ConfigErrors) as caught:
        resolve_targets(tiny_llama, ["q_proj", "v_prj"], family_of("llama"))
    assert "'v_prj'" in str(caught.value)
    assert "Did you mean 'v_proj'?" in str(caught.value)


def test_all_misspelt_targets_are_shown_at_once(tiny_llama):
    with pytest.raises(ConfigErrors) as caught:
        resolve_targets(tiny_llama, ["v_prj", "dwn_proj", "k_proj"], family_of("llama"))
    assert [problem.value for problem in caught.value.problems] == [
        "'v_prj' matches nothing",
        "'dwn_proj' matches nothing",
    ]


def test_default_is_the_familys_list(tiny_llama):
    targets, notes = resolve_targets(tiny_llama, [], family_of("llama"))
    assert sorted(targets) == sorted(ATTENTION_AND_MLP)
    assert notes == []


def test_all_linear_leaves_head_and_embedding_alone(tiny_llama):
    assert all_linear(tiny_llama) == sorted(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    assert resolve_targets(tiny_llama, ["all-linear"], GENERIC)[0] == all_linear(tiny_llama)


def test_a_dotted_suffix_names_one_layer(tiny_llama):
    assert resolve_targets(tiny_llama, ["layers.1.self_attn.q_proj"], GENERIC)[0] == ["layers.1.self_attn.q_proj"]


def test_split_names_map_to_the_fused_modules_of_phi3():
    from transformers import Phi3Config, Phi3ForCausalLM

    family = family_of("phi3")
    model = Phi3ForCausalLM(Phi3Config(**family.tiny))
    targets, notes = resolve_targets(model, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj"], family)
    assert targets == ["qkv_proj", "o_proj", "gate_up_proj"]
    assert len(notes) == 4 and "qkv_proj gets the adapter" in notes[0]
