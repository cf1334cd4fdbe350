"""Attaching adapters: reproducible, scaled as promised, moving in every checkpointing mode."""

import copy

import pytest
import torch

from hasten.errors import ConfigError, ConfigErrors
from hasten.lora.attach import attach, trainable_parameters
from hasten.lora.checkpointing import enable_checkpointing
from hasten.lora.settings import LoraSettings


def lora_parameters(model, part):
    return {name: value for name, value in model.named_parameters() if part in name}


def test_first_values_depend_on_the_seed_alone(tiny_llama):
    first = attach(copy.deepcopy(tiny_llama), LoraSettings(seed=7)).model
    torch.rand(1000)  # another state of the global generator
    before = torch.get_rng_state()
    second = attach(copy.deepcopy(tiny_llama), LoraSettings(seed=7)).model
    assert torch.equal(before, torch.get_rng_state())
    other = attach(copy.deepcopy(tiny_llama), LoraSettings(seed=8)).model
    a, b, c = (lora_parameters(model, "lora_A") for model in (first, second, other))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not any(torch.equal(a[name], c[name]) for name in a)


def test_only_the_adapter_is_trained(tiny_llama):
    model = attach(tiny_llama, LoraSettings(r=4)).model
    trained, total = trainable_parameters(model)
    assert trained == sum(value.numel() for value in lora_parameters(model, "lora_").values())
    assert 0 < trained < total


def test_a_second_adapter_is_refused(tiny_llama):
    model = attach(tiny_llama, LoraSettings()).model
    with pytest.raises(ConfigError, match="already has an adapter.*continue"):
        attach(model, LoraSettings())


def test_misspelt_module_to_save_is_refused(tiny_llama):
    with pytest.raises(ConfigErrors, match="lm_hed.*Did you mean 'lm_head'"):
        attach(tiny_llama, LoraSettings(modules_to_save=["lm_hed"]))


# A14, second half.
@pytest.mark.parametrize("mode", ["off", "reentrant", "non-reentrant"])
def test_every_b_matrix_moves_in_every_checkpointing_mode(tiny_llama, mode):
    trained = train_three_steps(copy.deepcopy(tiny_llama), mode)
    plain = train_three_steps(tiny_llama, "off")
    assert all(matrix.any() for matrix in trained.values())
    # Recomputing repeats the same float32 operations on the same inputs: equal to the last bit on one thread count.
    for name, matrix in trained.items():
        torch.testing.assert_close(matrix, plain[name], rtol=0, atol=1e-6)


def train_three_steps(model, mode):
    model = attach(model, LoraSettings(r=4, seed=1)).model.train()
    if mode != "off":
        enable_checkpointing(model, reentrant=mode == "reentrant")
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=0.1)
    ids = torch.randint(3, 128, (2, 12), generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return lora_parameters(model, "lora_B")


def test_4_bit_weights_count_as_what_they_stand_for():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    module = torch.nn.Linear(2, 2, bias=False)
    module.weight = bitsandbytes.nn.Params4bit(torch.randn(8, 64), requires_grad=False, quant_type="nf4").to("cpu")
    assert trainable_parameters(module) == (0, 8 * 64)
