"""Merging by streaming says what peft's own merge says, and what the live model computes."""

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING

from export.hf.conftest import adapt, logits, merge, model_of
from hasten.errors import CapabilityError, ModelError
from hasten.export.hf.merged import MergedWeights
from hasten.export.weights import PlainFolder
from hasten.families.base import all_families, family_of
from hasten.loading.beginning import FILE
from hasten.loading.plain_adapter import write_whole
from support import tiny

ROUNDING = 4e-5
"""Of logits below 10 in float32, summed in another order; see tests/lora/test_merge.py."""


def plain_merge(live):
    """peft's own, by names of a checkpoint."""
    return {name: value.detach() for name, value in live.merge_and_unload().state_dict().items()}


def require_equal(weights, expected):
    """Bit for bit, or within one rounding of float32 where products were summed in another order."""
    for name in weights.shapes:
        torch.testing.assert_close(weights.read(name), expected[name], rtol=2**-23, atol=1e-7)


def random_family(family):
    return tiny.of_config(CONFIG_MAPPING[family.model_types[0]](**family.tiny))


DENSE = [family for family in all_families() if family.tiny and not any("experts" in key for key in family.tiny)]
"""Experts have other names in a checkpoint than in a model; they have tests of their own below."""


@pytest.mark.parametrize("family", DENSE, ids=lambda each: each.name)
def test_every_family_as_peft_merges(adapted, family):
    case = adapted(random_family(family), target_modules=list(family.lora_targets))
    weights = merge(case)
    torch.testing.assert_close(logits(model_of(weights)), logits(case.live), rtol=0, atol=ROUNDING)
    require_equal(weights, plain_merge(case.live))


@pytest.mark.parametrize(
    "lora",
    [
        {"r": 8, "lora_alpha": 32},
        {"r": 16, "lora_alpha": 16, "use_rslora": True},
        {"rank_pattern": {"layers.0.self_attn.q_proj": 7}, "alpha_pattern": {r".*v_proj": 3}},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 5}, "use_rslora": True},
        {"use_dora": True},
        {"use_dora": True, "target_modules": ["q_proj", "embed_tokens"]},
        {"bias": "all"},
        {"bias": "lora_only"},
        {"lora_bias": True},
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"modules_to_save": ["norm", "down_proj"]},
        {"trainable_token_indices": {"embed_tokens": [1, 9], "lm_head": [4]}},
        {"layers_to_transform": [1]},
    ],
    ids=str,
)
def test_every_kind_as_peft_merges(adapted, lora):
    case = adapted(tiny.llama(tied=False, attention_bias=True), **{"target_modules": ["q_proj", "v_proj"], **lora})
    weights = merge(case)
    torch.testing.assert_close(logits(model_of(weights)), logits(case.live), rtol=0, atol=ROUNDING)
    require_equal(weights, plain_merge(case.live))
    assert weights.config == PlainFolder(case.base).config


def test_sixteen_bits_are_rounded_once(tmp_path):
    model = tiny.llama(tied=False).to(torch.bfloat16)
    case = adapt(tmp_path / "base", model, tmp_path, target_modules=["q_proj"])
    name = "model.layers.0.self_attn.q_proj.weight"
    found = merge(case).read(name)
    parts = load_file(case.adapter / "adapter_model.safetensors")
    a, b = (parts[f"base_model.model.{name[:-7]}.lora_{side}.weight"].double() for side in "AB")
    exact = model.state_dict()[name].double() + 1.5 * b @ a
    assert found.dtype is torch.bfloat16
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=0)


def test_a17_the_factor_is_alpha_over_rank_or_its_root(adapted):
    case = adapted(tiny.llama(), target_modules=["q_proj"], r=16, lora_alpha=16, use_rslora=True)
    assert merge(case).file.scale("model.layers.0.self_attn.q_proj", 16) == 4.0


# --- A15: embedding and head that share a weight ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lora", "tied"),
    [
        ({"target_modules": ["lm_head"]}, False),
        ({"target_modules": ["embed_tokens"]}, False),
        ({"target_modules": ["embed_tokens", "lm_head"]}, False),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, False),
        ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, False),
        ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}, False),
        ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, True),
        ({"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}, True),
        ({"target_modules": ["q_proj"], "trainable_token_indices": [1, 2, 9]}, True),
        ({"target_modules": ["q_proj"]}, True),
        ({"target_modules": ["embed_tokens"], "use_dora": True}, False),
    ],
    ids=str,
)
@pytest.mark.parametrize("save", [True, False])
def test_a15_tied_ends_come_out_as_they_were_live(adapted, lora, tied, save):
    case = adapted(tiny.llama(tied=True), save={"save_embedding_layers": save}, **lora)
    weights = merge(case)
    # Embeddings of DoRA are far from where they began: logits of some hundreds.
    expected = logits(case.live)
    atol = ROUNDING * max(1.0, float(expected.abs().max()) / 10)
    torch.testing.assert_close(logits(model_of(weights)), expected, rtol=0, atol=atol)
    assert weights.config["tie_word_embeddings"] is tied
    assert ("lm_head.weight" in weights.shapes) is not tied
    assert bool(weights.notes) is not tied


@pytest.mark.parametrize(
    ("tied", "targets"),
    [  # of an untied model with an adapter on one end, peft does not save the other
        (True, ["q_proj"]),
        (False, ["q_proj"]),
        (True, ["q_proj", "embed_tokens", "lm_head"]),
        (False, ["q_proj", "embed_tokens", "lm_head"]),
        (True, ["q_proj", "lm_head"]),
    ],
    ids=str,
)
def test_a_vocabulary_that_grew(adapted, tied, targets):
    case = adapted(tiny.llama(tied=tied), grown=131, save={"save_embedding_layers": True}, target_modules=targets)
    weights = merge(case)
    assert weights.config["vocab_size"] == 131 and weights.shapes["model.embed_tokens.weight"] == (131, 64)
    torch.testing.assert_close(logits(model_of(weights)), logits(case.live), rtol=0, atol=ROUNDING * 4)


@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "embed_tokens", "lm_head"]], ids=str)
def test_a_padded_table_keeps_its_rows(adapted, targets):
    case = adapted(
        tiny.llama(vocab=160, tied=False), grown=130, save={"save_embedding_layers": True}, target_modules=targets
    )
    weights = merge(case)
    assert weights.config["vocab_size"] == 160 and weights.shapes["lm_head.weight"] == (160, 64)
    found = logits(model_of(weights))[..., :130]
    torch.testing.assert_close(found, logits(case.live), rtol=0, atol=ROUNDING)


def test_rows_that_the_adapter_does_not_hold(adapted):
    case = adapted(tiny.llama(tied=False), grown=131, target_modules=["embed_tokens"])
    with pytest.raises(ModelError, match=r"it is for 131 x 64, and 'model.embed_tokens.weight' of .* is 128 x 64"):
        merge(case)


# --- experts ----------------------------------------------------------------------------------------------------------

EXPERTS = {
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 16},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40},
    "mixtral": {"num_local_experts": 4},
    "gpt_oss": {"num_local_experts": 4, "head_dim": 16, "intermediate_size": 48},  # 48 x 48: told by its kind alone
}


def of_experts(kind):
    fields = {"vocab_size": 131, "hidden_size": 48, "intermediate_size": 32, "num_hidden_layers": 2}
    fields |= {"num_attention_heads": 4, "num_key_value_heads": 2, **EXPERTS[kind]}
    return tiny.of_config(CONFIG_MAPPING[kind](**fields))


@pytest.mark.parametrize("kind", EXPERTS)
@pytest.mark.parametrize("parameters", [["experts.gate_up_proj", "experts.down_proj"], ["experts.down_proj"]], ids=len)
def test_experts_as_peft_merges(adapted, kind, parameters, tmp_path):
    lora = {"rank_pattern": {"experts.down_proj": 3}, "alpha_pattern": {"experts.down_proj": 5}}
    case = adapted(of_experts(kind), target_modules=["q_proj"], target_parameters=parameters, **lora)
    weights = merge(case)
    case.live.merge_and_unload().save_pretrained(tmp_path / "theirs")
    expected = load_file(tmp_path / "theirs" / "model.safetensors")
    assert set(expected) == set(weights.shapes)
    before = PlainFolder(case.base)
    moved = [name for name in weights.shapes if not torch.equal(weights.read(name), before.read(name))]
    assert any("expert" in name for name in moved)
    for name, value in expected.items():
        torch.testing.assert_close(weights.read(name), value, rtol=2**-22, atol=1e-6)


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral"])
def test_experts_trained_in_full(adapted, kind, tmp_path):
    case = adapted(of_experts(kind), target_modules=["q_proj"], modules_to_save=["experts"])
    weights = merge(case)
    case.live.merge_and_unload().save_pretrained(tmp_path / "theirs")
    for name, value in load_file(tmp_path / "theirs" / "model.safetensors").items():
        torch.testing.assert_close(weights.read(name), value, rtol=2**-22, atol=1e-7)


def test_gpt2_keeps_its_matrices_the_other_way_round(adapted):
    config = CONFIG_MAPPING["gpt2"](vocab_size=131, n_embd=48, n_layer=2, n_head=4, n_positions=64)
    case = adapted(tiny.of_config(config), target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    require_equal(merge(case), plain_merge(case.live))


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def case(adapted):
    return adapted(tiny.llama(), target_modules=["q_proj"])


def with_tensor(case, name, value):
    file = case.adapter / "adapter_model.safetensors"
    save_file({**load_file(file), name: value}, file, {"format": "pt"})


def with_config(case, **changes):
    file = case.adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_tensor_without_a_place_is_named(case):
    with_tensor(case, "base_model.model.model.layers.7.mlp.extra.weight", torch.ones(3))
    with pytest.raises(ModelError, match=r"layers.7.mlp.extra.weight'.*has no 'model.layers.7.mlp.extra.weight'"):
        merge(case)


def test_a_tensor_of_another_method_is_named(case):
    with_tensor(case, "base_model.model.model.layers.0.self_attn.q_proj.lora_E", torch.ones(3))
    with pytest.raises(ModelError, match=r"q_proj.lora_E'.*LoRA has no use for"):
        merge(case)


def test_an_adapter_of_another_base(case, tmp_path):
    other = tiny.save_model(tmp_path / "other", tiny.llama(hidden_size=32))
    with pytest.raises(ModelError, match=r"lora_B.weight'.*64 x 64, and 'model.layers.0.self_attn.q_proj.weight'.*32"):
        MergedWeights(PlainFolder(other), case.adapter)


def test_an_adapter_of_a_deeper_base(case, tmp_path):
    other = tiny.save_model(tmp_path / "other", tiny.llama(num_hidden_layers=1))
    with pytest.raises(ModelError, match=r"has no 'model.layers.1.self_attn.q_proj.weight'.*trained on as base"):
        MergedWeights(PlainFolder(other), case.adapter)


def test_half_of_a_pair(case):
    file = case.adapter / "adapter_model.safetensors"
    parts = load_file(file)
    save_file({name: value for name, value in parts.items() if "layers.0" not in name or "lora_A" in name}, file)
    with pytest.raises(ModelError, match=r"lora_A.weight'.*what belongs to it is missing"):
        merge(case)


def test_another_rank_in_the_configuration(case):
    with_config(case, r=8)
    with pytest.raises(ModelError, match=r"q_proj'.*rank 4, and adapter_config.json says 8"):
        merge(case)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"peft_type": "LOHA"}, CapabilityError, "kind LOHA.*merge_and_unload"),
        ({"use_qalora": True}, CapabilityError, "use_qalora=True"),
        ({"init_lora_weights": "pissa"}, ModelError, "'pissa'.*a plain adapter"),
    ],
)
def test_kinds_that_are_no_sum(case, changes, error, said):
    with_config(case, **changes)
    with pytest.raises(error, match=said):
        merge(case)


def test_a_bias_where_the_base_has_none(adapted):
    case = adapted(tiny.llama(), target_modules=["q_proj"], lora_bias=True)
    with pytest.raises(CapabilityError, match=r"lora_B.bias'.*'model.layers.0.self_attn.q_proj' has none.*lora_bias"):
        merge(case)


def test_files_that_are_missing_or_damaged(case):
    (case.adapter / "adapter_model.safetensors").write_bytes(b"no")
    with pytest.raises(ModelError, match="adapter_model.safetensors: it cannot be read"):
        merge(case)
    (case.adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match="it has no adapter_model.safetensors.*pickles are not read"):
        merge(case)


# --- beginnings -------------------------------------------------------------------------------------------------------


def test_a_beginning_is_left_out_of_sixteen_bits(case):
    parts = load_file(case.adapter / "adapter_model.safetensors")
    began = {
        name: torch.randn(value.shape, generator=torch.Generator().manual_seed(5)) for name, value in parts.items()
    }
    digest = hashlib.sha256((case.adapter / "adapter_model.safetensors").read_bytes()).hexdigest()
    write_whole(began, case.adapter / FILE, adapter=digest)
    weights = merge(case)
    name = "model.layers.1.self_attn.q_proj"
    stem = f"base_model.model.{name}.lora_"
    before, kept = (each[f"{stem}B.weight"] @ each[f"{stem}A.weight"] for each in (began, parts))
    expected = PlainFolder(case.base).read(f"{name}.weight") + 1.5 * (kept - before)
    torch.testing.assert_close(weights.read(f"{name}.weight"), expected, rtol=0, atol=1e-6)
    assert "left out of 16-bit" in weights.notes[0]

    base = PlainFolder(case.base)
    base.in_nf4 = frozenset(base.shapes)
    torch.testing.assert_close(
        MergedWeights(base, case.adapter).read(f"{name}.weight"),
        base.read(f"{name}.weight") + 1.5 * kept,
        rtol=0,
        atol=1e-6,
    )
    base.in_nf4 = frozenset([f"{name}.weight"])
    with pytest.raises(ModelError, match="1 of the 2 weights that it adapts are not in 4 bits"):
        MergedWeights(base, case.adapter)


# --- a real model -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_demo_model_as_peft_merges(demo_model_folder, tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(demo_model_folder, dtype=torch.float32)
    folder = shutil.copytree(demo_model_folder, tmp_path / "copy")
    lora = {"r": 16, "lora_alpha": 32, "target_modules": list(family_of("llama").lora_targets)}
    case = adapt(folder, model, tmp_path, **lora)
    weights, expected = merge(case), plain_merge(case.live)
    for name in weights.shapes:
        torch.testing.assert_close(weights.read(name), expected[name], rtol=2**-22, atol=1e-6)
