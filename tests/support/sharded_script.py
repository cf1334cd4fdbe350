"""One step of a fast model under FSDP2 and under DDP, on one gloo rank, against the plain model; prints "equal"."""

import sys

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM

from hasten.blocks.apply import apply, base_model, refused_in_training

IDS = torch.arange(3, 17).view(2, 7)
SIZES = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def model_of():
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2))
    return get_peft_model(model, LoraConfig(r=3, target_modules="all-linear", init_lora_weights=False)).train()


def step(model, whole=lambda tensor: tensor):
    keep, targets = torch.arange(6), IDS[:, 1:].reshape(-1)
    model(input_ids=IDS, use_cache=False, logits_to_keep=keep, hasten_targets=targets).loss.backward()
    return {
        name.removeprefix("module."): whole(parameter.grad)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def require_close(found, wanted):
    """float32 sums in another order: errors are relative to a gradient's largest value."""
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


def main():
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
    plain = model_of()
    loss = plain(input_ids=IDS, labels=IDS, use_cache=False).loss * IDS[:, 1:].numel()
    loss.backward()
    wanted = {name: parameter.grad for name, parameter in plain.named_parameters() if parameter.requires_grad}

    wrapped = model_of()
    apply(wrapped)
    found = step(DistributedDataParallel(wrapped))
    assert refused_in_training(wrapped) == set()
    require_close(found, wanted)

    for applied_first in (True, False):
        sharded = model_of()
        if applied_first:
            apply(sharded)
        for layer in base_model(sharded).model.layers:
            fully_shard(layer)
        fully_shard(sharded)
        if not applied_first:
            applied = apply(sharded)
            assert applied.layers == 0, applied.line()
            assert "weights sharded by FSDP" in applied.line(), applied.line()
            continue
        found = step(sharded, lambda gradient: gradient.full_tensor())
        assert refused_in_training(sharded) == {"weights sharded by FSDP"}
        require_close(found, wanted)
    dist.destroy_process_group()
    print("equal")


main()
