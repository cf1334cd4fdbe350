"""Fast layers in use: what transformers and its friends do with a model still works."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from hasten.blocks.apply import apply, gives_loss, refused_in_training, remove, replay_state, set_policies, widths_of
from hasten.blocks.layer import FastLayer
from hasten.lora.checkpointing import disable_checkpointing, enable_checkpointing
from hasten.policies import Widths
from hasten.training.replay import same_state
from support import tiny

IDS = torch.arange(3, 17).view(2, 7)


def lora(model, **changes):
    fields = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False, **changes}
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **fields)).train()


def fast_model(**changes):
    model = lora(tiny.llama(), **changes)
    return model, apply(model)


def gradients(model, **inputs):
    model.zero_grad()
    loss = model(input_ids=IDS, labels=IDS, **{"use_cache": False, **inputs}).loss
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


def require_close(left, right):
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=1e-4, atol=1e-6)


def test_classes_and_names_stay():
    plain = tiny.llama()
    model = copy.deepcopy(plain)
    applied = apply(model)
    assert applied.complete and applied.word == "fast" and applied.line() == "2 of 2 layers fast, fused loss"
    layer = model.model.layers[0]
    assert isinstance(layer, LlamaDecoderLayer) and type(layer).__name__ == "LlamaDecoderLayer"
    assert isinstance(model, LlamaForCausalLM) and type(model).__name__ == "LlamaForCausalLM"
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in model.named_modules()] == [name for name, _ in plain.named_modules()]
    assert widths_of(model) == Widths(hidden=64, query=64, key_value=32, mlp=128, item=4)
    assert apply(model).complete  # twice is once


def test_hidden_states_are_recorded():
    model = tiny.llama()
    wanted = model(IDS, output_hidden_states=True, use_cache=False).hidden_states
    apply(model)
    found = model(IDS, output_hidden_states=True, use_cache=False).hidden_states
    assert len(found) == 3
    for own, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(own, theirs)


def test_attention_weights_come_from_the_layers_own_forward():
    model = tiny.llama()
    apply(model)
    model.set_attn_implementation("eager")
    assert model(IDS, output_attentions=True, use_cache=False).attentions[0].shape == (2, 4, 7, 7)


@pytest.mark.parametrize("part", ["self_attn", "mlp", "input_layernorm"])
def test_hooks_are_heard(part):
    model = tiny.llama().train()
    apply(model)
    heard = []
    hook = getattr(model.model.layers[1], part).register_forward_hook(lambda *_: heard.append(part))
    model(IDS, labels=IDS, use_cache=False).loss.backward()
    assert heard == [part]
    assert refused_in_training(model) == {"hooks on attention, MLP or a norm"}
    hook.remove()
    model(IDS, use_cache=False)
    assert heard == [part]


def test_a_cache_in_training_runs_plain_and_is_said():
    model, _ = fast_model()
    with pytest.warns(UserWarning, match="slower forward: a key/value cache is kept"):
        gradients(model, use_cache=True)
    assert refused_in_training(model) == {"a key/value cache is kept (use_cache=False trains faster)"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"lora_dropout": 0.3}, "LoRA dropout"), ({"use_dora": True}, "a LoRA variant (DoRA or another)")],
)
def test_what_is_not_fused_runs_pefts_own_forward(changes, reason):
    model, applied = fast_model(**changes)
    assert applied.layers == 0 and applied.head
    assert applied.line() == f"0 of 2 layers fast, fused loss (2 x {reason})"
    assert applied.word == "partly fast"
    gradients(model)


def test_trained_heads_and_embeddings():
    plain = lora(tiny.llama(tied=False), target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    fast = copy.deepcopy(plain)
    applied = apply(fast)
    assert applied.layers == 2 and not applied.head
    assert "ModulesToSaveWrapper" in applied.line()
    require_close(gradients(fast), gradients(plain))


def test_an_architecture_without_a_map_stays_plain():
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 32, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=2))
    applied = apply(model)
    assert applied.word == "plain" and not gives_loss(model)
    assert "no fast path for 'gpt2' yet" in applied.line()
    remove(model)


@pytest.mark.parametrize("reentrant", [False, True])
def test_transformers_checkpointing_switch_is_a_policy(reentrant):
    model, _ = fast_model()
    before = gradients(model)
    enable_checkpointing(model, reentrant=reentrant)
    layers = [module for module in model.modules() if isinstance(module, FastLayer)]
    assert {layer.hasten_fast.effective for layer in layers} == {"recompute"}
    require_close(gradients(model), before)
    assert refused_in_training(model) == set()
    disable_checkpointing(model)
    assert {layer.hasten_fast.effective for layer in layers} == {"keep"}


def test_a_switch_that_was_on_before_and_goes_back():
    model = lora(tiny.llama())
    enable_checkpointing(model)
    apply(model)
    assert model.get_base_model().model.layers[0].hasten_fast.effective == "recompute"
    remove(model)
    assert model.get_base_model().model.layers[0].gradient_checkpointing is True


def test_recomputing_holds_for_layers_that_run_plain():
    model, _ = fast_model()
    model.set_attn_implementation("eager")
    before = gradients(model)
    saved = []
    set_policies(model, ["recompute"] * 2)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.numel()) or tensor, lambda x: x):
        again = gradients(model)
    require_close(again, before)
    kept = sum(saved)
    saved.clear()
    set_policies(model, ["keep"] * 2)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.numel()) or tensor, lambda x: x):
        gradients(model)
    assert kept < sum(saved) / 2


@pytest.mark.parametrize("policy", ["recompute", "offload"])
def test_attention_dropout_is_replayed(policy):
    model = lora(tiny.llama(attention_dropout=0.5))
    apply(model)
    results = []
    for chosen in ("keep", policy):
        set_policies(model, [chosen] * 2)
        torch.manual_seed(7)
        results.append(gradients(model))
    require_close(*results)
    torch.manual_seed(8)
    assert any(not torch.equal(a, b) for a, b in zip(gradients(model).values(), results[0].values(), strict=True))


def test_autocast_computes_in_its_dtype():
    model, _ = fast_model()
    plain = lora(tiny.llama())
    with torch.autocast("cpu", torch.bfloat16):
        mine, theirs = gradients(model), gradients(plain)
    truth = gradients(lora(tiny.llama()))
    own, other = (
        sum(float((found[name] - truth[name]).square().sum()) for name in truth) ** 0.5 for found in (mine, theirs)
    )
    assert 0 < own <= 1.2 * other
    assert all(gradient.dtype == torch.float32 for gradient in mine.values())
    assert refused_in_training(model) == set()


def test_the_first_layer_of_frozen_embeddings_asks_for_no_input_gradient():
    model, _ = fast_model()
    seen = []
    half = model.get_base_model().model.layers[0].hasten_fast.attention
    backward = type(half).backward

    def spy(self, call, saved, h, dout, need_dh):
        seen.append(need_dh)
        return backward(self, call, saved, h, dout, need_dh)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(half), "backward", spy)
        gradients(model)
    assert seen == [True, False]


def test_a_second_backward_is_refused():
    model, _ = fast_model()
    loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward needs a second forward"):
        loss.backward()


def test_saving_and_loading_is_as_ever(tmp_path):
    model = tiny.llama(tied=False)
    wanted = {name: value.clone() for name, value in model.state_dict().items()}
    apply(model)
    model(IDS, labels=IDS, use_cache=False).loss.backward()
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config.architectures == ["LlamaForCausalLM"]
    assert all(torch.equal(value, wanted[name]) for name, value in again.state_dict().items())
    copied = copy.deepcopy(model)
    torch.testing.assert_close(copied(IDS, use_cache=False).logits, model(IDS, use_cache=False).logits)
    model.load_state_dict({name: value * 2 for name, value in wanted.items()})
    doubled = tiny.llama(tied=False)
    doubled.load_state_dict({name: value * 2 for name, value in wanted.items()})
    torch.testing.assert_close(model(IDS, use_cache=False).logits, doubled(IDS, use_cache=False).logits)


def test_merging_an_adapter_of_a_fast_model():
    model, _ = fast_model()
    wanted = model.eval()(IDS, use_cache=False).logits
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(IDS, use_cache=False).logits, wanted, rtol=1e-4, atol=1e-5)


def test_under_torch_compile():
    model = lora(tiny.llama(num_hidden_layers=1))
    apply(model)
    before = gradients(model)
    compiled = torch.compile(model, backend="aot_eager")
    model.zero_grad()
    compiled(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    require_close({n: p.grad for n, p in model.named_parameters() if p.requires_grad}, before)


@pytest.mark.slow
def test_one_step_under_ddp_and_under_fsdp2(tmp_path):
    script = Path(__file__).parents[1] / "support" / "sharded_script.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "store")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("equal")


def test_what_recordings_depend_on_is_noticed():
    model, _ = fast_model()
    model.train()
    ids = torch.arange(3, 11).unsqueeze(0)
    look = replay_state(model)

    def seen():
        model(input_ids=ids, use_cache=False)
        return look()

    first = seen()
    assert first is not None and same_state(first, seen())
    set_policies(model, ["recompute"] * 2)
    assert not same_state(first, seen())
    set_policies(model, ["keep"] * 2)
    assert same_state(first, seen())
    model.eval()
    assert not same_state(first, look())
    model.train()
    with model.disable_adapter():
        assert not same_state(first, seen())
    again = seen()
    assert not same_state(first, again)  # the adapters are copied to new places
    hook = model.get_base_model().model.layers[1].mlp.register_forward_hook(lambda *_: None)
    assert look() is None
    hook.remove()
    assert same_state(again, look())
