"""Predicted bytes against what models take: equal where it can be counted, within a bound where it is measured."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hasten.errors import ConfigError
from hasten.estimate.facts import facts_of
from hasten.estimate.need import Machine, Settings, estimate, optimizer_bytes, trained_values
from hasten.hardware.memory import GIB, Budget
from hasten.hardware.probe import Hardware
from hasten.lora.attach import attach
from hasten.lora.settings import LoraSettings
from hasten.plan import choose_activations
from support import tiny

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
BOUND = 0.10
"""How far a measured peak may be from the prediction: allocators round, and moments of two parts may not coincide."""
CPU = Hardware(device="cpu", name="CPU", total_bytes=24 * GIB, cores=2, bf16=False)
CARD = Hardware(device="cuda:0", name="Card", total_bytes=80 * GIB, cores=1, bf16=True, capability=(9, 0))


def machine(hardware, free=20 * GIB):
    return Machine(hardware=hardware, budget=Budget(bytes=free, rule="", reserve=0))


def part(found, begin):
    return sum(size for name, size in found.parts.items() if name.startswith(begin))


def step(model, optimizer):
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    made = optimizer(trained)
    model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    gradients = sum(parameter.grad.nbytes for parameter in trained)
    made.step()
    return gradients, made


def state_bytes(optimizer):
    return sum(
        value.nbytes
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )


@pytest.mark.parametrize("full", [False, True])
def test_adapter_gradients_and_optimizer_are_those_of_a_step(full):
    model = tiny.llama()
    facts = facts_of("tiny", model.config)
    found = estimate(facts, Settings(full=full, rank=4), machine(CPU))
    adapted = model if full else attach(model, LoraSettings(r=4)).model
    learnt = sum(parameter.nbytes for parameter in adapted.parameters() if parameter.requires_grad)
    gradients, optimizer = step(adapted, lambda trained: torch.optim.AdamW(trained, fused=True))
    assert part(found, "gradients") == gradients == learnt
    assert part(found, "adapter") == (0 if full else learnt)
    assert part(found, "optimizer (adamw)") == state_bytes(optimizer)


def test_an_optimizer_in_8_bits():
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="its state is bitsandbytes'")
    model = tiny.llama(hidden_size=128, intermediate_size=256)
    adapted = attach(model, LoraSettings(r=48)).model
    trained = trained_values(facts_of("tiny", model.config), Settings(rank=48))
    _, optimizer = step(adapted, bitsandbytes.optim.AdamW8bit)
    states = [
        value for state in optimizer.state.values() for name, value in state.items() if not name.startswith("qmap")
    ]
    real = sum(value.nbytes for value in states if isinstance(value, torch.Tensor))
    assert any(values < 4096 for values in trained) and any(values >= 4096 for values in trained)
    assert optimizer_bytes(trained, "adamw_8bit", 4) == real


def test_a_run_would_choose_the_same():
    """The estimate's choice is the run's: the same function, with what is free once weights and adapter are there."""
    config = tiny.llama(hidden_size=64, intermediate_size=2048, max_position_embeddings=8192).config
    facts = facts_of("tiny", config)
    settings = Settings(batch=4, length=4096)
    for free in (2 * GIB, GIB, GIB * 6 // 10):
        place = machine(replace(CPU, total_bytes=free), free)
        found = estimate(facts, settings, place)
        trained = 4 * sum(trained_values(facts, settings))
        policies, said = choose_activations(
            place.hardware,
            asked="auto",
            layers=2,
            tokens=4 * 4096,
            widths=replace(facts.widths, item=4),
            free_bytes=free - part(found, "weights") - part(found, "adapter"),
            trained_bytes=trained,
            vocabulary=128,
        )
        assert (found.policies, found.activations) == (policies, said)
        assert found.fits == (found.total <= free)


def newest(case):
    """The newest results of a case: older ones are of older code."""
    file = max(RESULTS.glob(f"{case}_NVIDIA*.json"), key=lambda path: path.stem.rpartition("_")[2])
    values = json.loads(file.read_text(encoding="utf-8"))
    return values["spec"], values["arms"]


@pytest.mark.parametrize(
    ("case", "arm", "storage", "policy"),
    [
        ("lora_step_8b", "hasten", "plain", "keep"),
        ("lora_step_8b", "hasten-offload", "plain", "offload"),
        ("qlora_8b", "hasten-qlora", "nf4", "offload"),
        ("qlora_8b", "hasten-qlora-free", "nf4", "keep"),
        ("full_1b", "hasten", "plain", "keep"),
        ("long_8b", "hasten-recompute_mlp", "plain", "recompute_mlp"),
        ("long_8b", "hasten-offload", "plain", "offload"),
        ("longest_8b", "hasten-qlora", "nf4", "offload"),
    ],
)
def test_peaks_that_were_measured(monkeypatch, case, arm, storage, policy):
    from transformers import LlamaConfig

    monkeypatch.syspath_prepend(str(RESULTS.parent))
    shapes = importlib.import_module("model_shapes").SHAPES
    spec, arms = newest(case)
    facts = facts_of(case, LlamaConfig(**shapes[spec["shape"]], max_position_embeddings=8192))
    settings = Settings(full=not spec["lora"], storage=storage, length=spec["length"], batch=spec["batch"])
    found = estimate(facts, settings, machine(CARD, 80 * GIB), policies=[policy] * facts.layers)
    predicted = found.total - part(found, "room")
    measured = arms[arm]["peak_allocated_gb"] * 1e9
    print(f"{case} {arm}: {predicted / 1e9:.2f} predicted, {measured / 1e9:.2f} measured")
    assert abs(predicted / measured - 1) < BOUND


def test_quantized_weights_are_not_trained():
    facts = facts_of("tiny", tiny.llama().config)
    with pytest.raises(ConfigError, match="with --storage nf4.*frozen.*Leave out one"):
        estimate(facts, Settings(full=True, storage="nf4"), machine(CPU))


def test_plain_modules_keep_everything_or_are_all_recomputed():
    from transformers import Gemma3TextConfig

    from hasten.families.base import family_of

    config = Gemma3TextConfig(**family_of("gemma3_text").tiny)
    facts = facts_of("gemma", config)
    assert not facts.fast and "no fast path" in facts.why_plain
    kept = estimate(facts, Settings(length=64), machine(CPU))
    recomputed = estimate(facts, Settings(length=64, checkpointing="on"), machine(CPU))
    assert set(kept.policies) == {"keep"} and set(recomputed.policies) == {"recompute"}
    assert part(recomputed, "activations kept") < part(kept, "activations kept")
