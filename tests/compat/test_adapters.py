import dataclasses

import pytest
import torch
from peft import LoftQConfig, PeftModel

from compat.test_signatures import ANY_PEFT, LANGUAGE_PEFT
from hasten.compat import fast
from hasten.compat.loaders import FastLanguageModel, FastModel
from hasten.errors import CapabilityError, ConfigError, ConfigErrors
from hasten.hardware.probe import Hardware, probe
from support import tiny


def targets(model):
    return set(model.peft_config["default"].target_modules)


def test_seven_targets(loaded):
    model = FastLanguageModel.get_peft_model(loaded[0])
    assert isinstance(model, PeftModel)
    assert len(targets(model)) == 7
    assert model.max_seq_length == 48
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout, config.bias) == (16, 16, 0.0, "none")


def test_every_default_by_name(loaded):
    assert isinstance(FastLanguageModel.get_peft_model(loaded[0], **LANGUAGE_PEFT), PeftModel)


def test_every_default_of_fast_model(loaded):
    assert len(targets(FastModel.get_peft_model(loaded[0], **ANY_PEFT))) == 7


def test_first_values_depend_on_the_seed_alone(tiny_model_folder):
    def first(seed):
        model, _ = FastLanguageModel.from_pretrained(str(tiny_model_folder), load_in_4bit=False)
        torch.rand(1)
        model = FastLanguageModel.get_peft_model(model, random_state=seed)
        return next(weight for name, weight in model.named_parameters() if "lora_A" in name).clone()

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_the_same_again(loaded):
    model = FastLanguageModel.get_peft_model(loaded[0], r=4, loftq_config=None)
    assert FastLanguageModel.get_peft_model(model, r=4) is model
    with pytest.raises(TypeError, match=r"get_peft_model\(r=...\): 8.*has 4.*load the base model"):
        FastLanguageModel.get_peft_model(model, r=8)
    with pytest.raises(ConfigError, match="target_modules"):
        FastLanguageModel.get_peft_model(model, r=4, target_modules=["q_proj"])


def test_full_finetuning(tiny_model_folder, capsys):
    model, _ = FastLanguageModel.from_pretrained(str(tiny_model_folder), full_finetuning=True)
    assert FastLanguageModel.get_peft_model(model, r=4) is model
    assert all(weight.requires_grad for weight in model.parameters())
    assert "every weight is trained" in capsys.readouterr().err


def test_a_model_of_fast_model_in_the_other_class(tiny_model_folder):
    model, _ = FastModel.from_pretrained(str(tiny_model_folder), load_in_4bit=False)
    assert isinstance(FastLanguageModel.get_peft_model(model), PeftModel)


def test_misspelt_target(loaded):
    with pytest.raises(ConfigErrors, match="'v_prj' matches nothing.*Did you mean 'v_proj'"):
        FastLanguageModel.get_peft_model(loaded[0], target_modules=["q_proj", "v_prj"])


def test_a_text_for_targets(loaded):
    with pytest.raises(ConfigError, match=r"'q_proj'.*list of names.*Write \['q_proj'\]"):
        FastLanguageModel.get_peft_model(loaded[0], target_modules="q_proj")


def test_all_linear(loaded):
    assert "lm_head" not in targets(FastModel.get_peft_model(loaded[0], target_modules="all-linear"))


def test_flags(loaded):
    model = FastModel.get_peft_model(loaded[0], finetune_vision_layers=False, finetune_mlp_modules=False)
    assert targets(model) == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_flags_the_other_way(loaded):
    model = FastModel.get_peft_model(loaded[0], finetune_attention_modules=False)
    assert targets(model) == {"gate_proj", "up_proj", "down_proj"}


def test_flags_that_leave_nothing(loaded):
    with pytest.raises(ConfigError, match="False, False.*nothing is left.*Set one of them"):
        FastModel.get_peft_model(loaded[0], finetune_attention_modules=False, finetune_mlp_modules=False)
    with pytest.raises(ConfigError, match="finetune_language_layers: False.*no other layers"):
        FastModel.get_peft_model(loaded[0], finetune_language_layers=False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"qat_scheme": "int4"}, "qat_scheme.*'int4'.*load_in_4bit"),
    ],
)
def test_not_offered(loaded, arguments, words):
    with pytest.raises(CapabilityError, match=words):
        FastLanguageModel.get_peft_model(loaded[0], **arguments)


def test_not_offered_by_fast_model(loaded):
    with pytest.raises(CapabilityError, match="finetune_audio_layers.*True.*text models"):
        FastModel.get_peft_model(loaded[0], finetune_audio_layers=True)
    with pytest.raises(CapabilityError, match="task_type.*SEQ_CLS.*causal"):
        FastModel.get_peft_model(loaded[0], task_type="SEQ_CLS")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"bias": "some"}, "bias: 'some'.*none, all, lora_only"),
        ({"r": 0}, "get_peft_model.r: 0.*at least 1"),
        ({"use_gradient_checkpointing": "yes"}, "use_gradient_checkpointing: 'yes'.*'unsloth'.*Use True"),
        ({"lora_droput": 0.1}, "lora_droput.*Did you mean 'lora_dropout'"),
        ({"finetune_last_n_layers": 3}, "finetune_last_n_layers: 3.*2 layers"),
        ({"finetune_last_n_layers": 1, "layers_to_transform": [0]}, "both choose layers.*Leave one"),
        ({"target_modules": ["lm_head"]}, "lm_head.*full_finetuning"),
    ],
)
def test_wrong(loaded, arguments, words):
    with pytest.raises(ConfigError, match=words):
        FastLanguageModel.get_peft_model(loaded[0], **arguments)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"loftq_bits": 2}, r"loftq_config=\.\.\.\): loftq_bits=2.*NF4 lost.*Use loftq_bits=4"),
        (LoftQConfig(loftq_iter=5), "loftq_iter=5.*stay what load_in_4bit makes.*Use loftq_iter=1"),
        ({"loftq_bit": 4}, "'loftq_bit'.*Did you mean 'loftq_bits'"),
        ([4], r"\[4\].*a LoftQConfig, a dict or None"),
        ({"loftq_bits": 4}, "'loftq' with 'model.layers.0.self_attn.q_proj', in 16 bits or more.*load_in_4bit"),
    ],
)
def test_loftq_that_is_not_made(loaded, config, words):
    with pytest.raises(ConfigError, match=words):
        FastLanguageModel.get_peft_model(loaded[0], init_lora_weights="loftq", loftq_config=config)


def test_a_loftq_config_without_loftq(loaded):
    with pytest.raises(ConfigError, match="loftq_config.*init_lora_weights='loftq'.*set both"):
        FastLanguageModel.get_peft_model(loaded[0], loftq_config=LoftQConfig())


@pytest.mark.parametrize("config", [None, {"loftq_bits": 4, "loftq_iter": 1}, LoftQConfig()])
def test_loftq(tiny_model_folder, config, capsys):
    pytest.importorskip("bitsandbytes", reason="4-bit weights are bitsandbytes'")
    model, _ = FastModel.from_pretrained(str(tiny_model_folder))
    values = {"r": 4, "target_modules": ["q_proj"], "init_lora_weights": "loftq", "loftq_config": config}
    model = FastModel.get_peft_model(model, **values)
    assert "begins as what 4 bits lost" in capsys.readouterr().err
    assert all(weight.any() for name, weight in model.named_parameters() if "lora_B" in name)
    assert FastModel.get_peft_model(model, **values) is model


def test_handed_to_peft(loaded):
    model = FastLanguageModel.get_peft_model(
        loaded[0],
        use_rslora=True,
        layers_to_transform=[1],
        bias="lora_only",
        init_lora_weights="gaussian",
        use_dora=True,
    )
    config = model.peft_config["default"]
    assert (config.use_rslora, config.layers_to_transform, config.bias) == (True, [1], "lora_only")
    assert (config.init_lora_weights, config.use_dora) == ("gaussian", True)


def test_last_layers(loaded):
    model = FastLanguageModel.get_peft_model(loaded[0], finetune_last_n_layers=1)
    adapted = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert adapted and all(".layers.1." in name for name in adapted)


def test_embedding_and_head_are_trained_in_full(tmp_path, capsys):
    folder = tiny.save_model(tmp_path / "untied", tiny.llama(tied=False))
    model, _ = FastLanguageModel.from_pretrained(str(folder), load_in_4bit=False)
    model = FastLanguageModel.get_peft_model(model, target_modules=["q_proj", "embed_tokens", "lm_head"])
    assert set(model.peft_config["default"].modules_to_save) == {"embed_tokens", "lm_head"}
    assert targets(model) == {"q_proj"}
    assert "trained in full" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wanted", "device", "policy"),
    [
        ("unsloth", "cpu", "recompute"),
        ("unsloth", "cuda:0", "offload"),
        (True, "cpu", "recompute"),
        (False, "cpu", "keep"),
        ("auto", "cpu", "keep"),
    ],
)
def test_checkpointing(loaded, wanted, device, policy, monkeypatch, capsys):
    machine = dataclasses.replace(probe(), device=device)
    monkeypatch.setattr(fast, "probe", lambda: machine)
    monkeypatch.setattr(fast, "free_bytes", lambda hardware: 2**34)
    model = FastLanguageModel.get_peft_model(loaded[0], use_gradient_checkpointing=wanted)
    assert {layer.hasten_fast.effective for layer in model.get_base_model().model.layers} == {policy}
    said = capsys.readouterr().err
    assert ("nothing is moved" in said) is (wanted == "unsloth" and device == "cpu")


@pytest.mark.parametrize("wanted", [1, 0, "yes", None])
def test_checkpointing_of_another_kind_is_refused(loaded, wanted):
    with pytest.raises(ConfigError, match=rf"use_gradient_checkpointing: {wanted!r}.*True, False, 'unsloth' or 'auto'"):
        FastLanguageModel.get_peft_model(loaded[0], use_gradient_checkpointing=wanted)


def test_a_model_without_a_fast_path_is_checkpointed_by_transformers(capsys):
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 32, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=2))
    for wanted in (True, False):
        fast.make_fast(model, wanted)
        assert model.transformer.h[0].gradient_checkpointing is wanted
    assert "no fast path for 'gpt2' yet" in capsys.readouterr().err


def test_modes(adapted):
    model, _ = adapted
    assert FastLanguageModel.for_inference(model) is model
    assert not model.training
    assert FastModel.for_training(model) is model
    assert model.training
    assert model.for_training(use_gradient_checkpointing=False) is model


@pytest.mark.parametrize(("wanted", "shared"), [("unsloth", True), ("unsloth", False)])
def test_layers_inputs_stay_where_the_device_has_the_hosts_memory(wanted, shared, tiny_llama, monkeypatch):
    card = Hardware(
        device="cuda:0", name="Card", total_bytes=2**34, cores=1, bf16=True, capability=(12, 1), unified_memory=shared
    )
    monkeypatch.setattr(fast, "probe", lambda: card)
    monkeypatch.setattr(fast, "free_bytes", lambda hardware: 2**34)
    fast.make_fast(tiny_llama, wanted)
    policies = {layer.hasten_fast.policy for layer in tiny_llama.model.layers}
    assert policies == {"recompute" if shared else "offload"}
