"""The Plan: decisions from facts alone, each with its reason, fallbacks marked."""

import dataclasses
import re

import pytest

from hasten.errors import CapabilityError, ConfigError
from hasten.families.base import GENERIC, family_of
from hasten.hardware.memory import Meminfo, budget
from hasten.hardware.probe import Hardware
from hasten.plan import (
    DTYPES,
    LOGITS_BYTES,
    Request,
    activation_room,
    choose_activations,
    choose_dtype,
    choose_kernels,
    choose_replay,
    choose_streaming,
    choose_turned,
    choose_watch,
    make_plan,
    say_memory,
    say_products,
)
from hasten.policies import Widths, kept_bytes, working_bytes

CPU = Hardware(device="cpu", name="Some CPU", total_bytes=24 << 30, cores=2, bf16=False)
SPARK = Hardware(
    device="cuda:0",
    name="NVIDIA GB10",
    total_bytes=121 << 30,
    cores=20,
    bf16=True,
    capability=(12, 1),
    unified_memory=True,
)
OLD = Hardware(device="cuda:0", name="Tesla T4", total_bytes=15 << 30, cores=4, bf16=False, capability=(7, 5))
LLAMA = family_of("llama")


def decision(plan, part):
    return next(decision for decision in plan.decisions if decision.part == part)


@pytest.mark.parametrize(
    ("hardware", "dtype", "fallback", "autocast"),
    [(CPU, "float32", False, False), (SPARK, "bfloat16", False, True), (OLD, "float16", True, True)],
)
def test_dtype_follows_the_machine(hardware, dtype, fallback, autocast):
    plan = make_plan(hardware, LLAMA, "llama", Request())
    assert (plan.dtype, plan.autocast, plan.device) == (dtype, autocast, hardware.device)
    assert decision(plan, "dtype").fallback is fallback
    assert hardware.name in decision(plan, "device").why


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_dtype_that_was_asked_for_is_taken(dtype):
    chosen, why = choose_dtype(SPARK, dtype)
    assert (chosen, why.why, why.fallback) == (dtype, "asked for", False)


def test_half_precision_on_a_cpu_is_refused():
    with pytest.raises(ConfigError, match="model.dtype: 'float16' on a CPU.*GPUs only.*Use 'auto' or 'bfloat16'"):
        make_plan(CPU, LLAMA, "llama", Request(dtype="float16"))


def test_an_unknown_dtype_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="'bfloat'.*Allowed: auto, bfloat16.*Did you mean 'bfloat16'"):
        choose_dtype(SPARK, "bfloat")


def test_8_bit_products_are_refused_with_the_reason():
    fp8 = Request(compute="fp8")
    with pytest.raises(CapabilityError, match="'fp8' on Some CPU .no GPU.*8.9.*Use 'bf16'"):
        make_plan(CPU, LLAMA, "llama", fp8)
    with pytest.raises(CapabilityError, match="'fp8' on Tesla T4 .compute capability 7.5"):
        make_plan(OLD, LLAMA, "llama", fp8)
    with pytest.raises(ConfigError, match="'fp8' with dtype 'float16'.*bfloat16"):
        make_plan(SPARK, LLAMA, "llama", dataclasses.replace(fp8, dtype="float16"))
    with pytest.raises(ConfigError, match="'unheard_of' has none yet"):
        make_plan(SPARK, family_of("unheard_of"), "unheard_of", fp8)
    assert make_plan(SPARK, LLAMA, "llama", fp8).compute == "fp8"
    assert make_plan(CPU, LLAMA, "llama", Request()).compute == "bf16"


def test_8_bit_products_of_whole_numbers_are_refused():
    with pytest.raises(ConfigError, match="'fp8' with load_in_8bit.*load_in_fp8"):
        make_plan(SPARK, LLAMA, "llama", Request(compute="fp8", storage="int8"))


def test_a_turned_copy_is_kept_where_half_of_the_memory_remains():
    turned, said = choose_turned(7 * 10**9, 0, 0, 40 * 10**9)
    assert turned and said.choice == "fp8" and "13.0 GiB for two copies" in said.why
    turned, said = choose_turned(7 * 10**9, 0, 0, 20 * 10**9)
    assert not turned and "6.5 GiB for one copy" in said.why
    assert "4-bit weights" in choose_turned(0, 0, 0, 20 * 10**9)[1].why
    assert "0.9 GiB for copies of what is trained" in choose_turned(0, 0, 10**9, 20 * 10**9)[1].why
    turned, said = choose_turned(0, 7 * 10**9, 0, 20 * 10**9)
    assert turned and "6.5 GiB for turned copies" in said.why
    turned, said = choose_turned(0, 7 * 10**9, 0, 13 * 10**9)
    assert not turned and "turned when used" in said.why
    with pytest.raises(CapabilityError, match="'fp8' with 6.5 GiB free.*takes 6.5 GiB.*load_in_4bit"):
        choose_turned(7 * 10**9, 0, 0, 7 * 10**9)


def test_a_model_is_streamed_where_it_does_not_fit():
    def chosen(hardware, asked=None, weights=10, working=4, free=20):
        sizes = {"weights_bytes": weights << 30, "working_bytes": working << 30, "free_bytes": int(free * 2**30)}
        return choose_streaming(hardware, asked=asked, **sizes)

    card = dataclasses.replace(SPARK, unified_memory=False)
    streamed, said = chosen(card, free=20.05)
    why = "10.0 GiB and 4.0 GiB to work in, 14.0 GiB at hand"  # a twentieth of 121 GiB stays free
    assert (streamed, said.part, said.choice, said.why) == (False, "weights", "all on cuda:0", why)
    streamed, said = chosen(card, working=5)
    assert streamed and said.choice == "one layer at a time on cuda:0" and "10.0 GiB and 5.0 GiB" in said.why
    assert chosen(card, asked=True)[0] and not chosen(card, asked=False, weights=100)[0]
    assert chosen(card, asked=True)[1].why == "asked for"
    streamed, said = chosen(CPU, weights=100)
    assert not streamed and said.choice == "all on cpu" and said.why == "they are computed where they are"
    assert chosen(CPU, asked=True)[1].choice == "one layer at a time on cpu"


@pytest.mark.parametrize("asked", [None, True, False])
def test_nothing_is_streamed_where_the_device_has_the_hosts_memory(asked):
    streamed, said = choose_streaming(SPARK, asked=asked, weights_bytes=2**40, working_bytes=0, free_bytes=2**30)
    assert not streamed and said.choice == "all on cuda:0" and "the host's" in said.why


def test_memory_is_said_with_its_rule():
    meminfo = Meminfo(total=121 << 30, free=41 << 30, available=115 << 30)
    line, note = say_memory(budget("unified", meminfo=meminfo, cuda_free=41 << 30))
    assert (line.part, line.choice) == ("memory", "107.4 GiB")
    assert "MemAvailable 115.0 GiB" in line.why and "CUDA says 41.0 GiB" in line.why
    assert note.part == "note" and "drop_caches" in note.why
    assert [said.why for said in say_memory(budget("discrete", cuda_free=2**30))] == ["CUDA's figure"]


def test_what_stays_in_16_bits_is_said():
    _, asked = choose_turned(0, 0, 0, 10**9)
    assert say_products(asked, 32, 32, {}) == (asked,)
    first, *others = say_products(asked, 30, 32, {"weights are trained": 2})
    assert first is asked and all(said.fallback and said.choice == "bf16" for said in others)
    assert [said.why for said in others] == ["2 groups: weights are trained", "2 of 32 layers run their own code"]
    assert asked not in say_products(asked, 0, 32, {})


def test_rows_are_packed_where_a_test_proves_it():
    plan = make_plan(CPU, LLAMA, "llama", Request())
    assert plan.layout == "packed" and not decision(plan, "rows").fallback
    asked = make_plan(CPU, LLAMA, "llama", Request(packing="on"))
    assert asked.layout == "packed"


def test_rows_are_padded_where_no_test_proves_it_and_that_is_said():
    plan = make_plan(CPU, GENERIC, "olmo", Request())
    rows = decision(plan, "rows")
    assert plan.layout == "padded" and rows.fallback and "'olmo'" in rows.why


def test_packing_that_is_not_proven_is_refused():
    with pytest.raises(ConfigError, match="training.packing: 'on' for model type 'olmo'.*Use 'auto'"):
        make_plan(CPU, GENERIC, "olmo", Request(packing="on"))


def test_packing_can_be_turned_off():
    plan = make_plan(CPU, LLAMA, "llama", Request(packing="off"))
    assert plan.layout == "padded" and not decision(plan, "rows").fallback


@pytest.mark.parametrize("asked", ["auto", "on", "off"])
def test_checkpointing(asked):
    plan = make_plan(SPARK, LLAMA, "llama", Request(checkpointing=asked))
    assert decision(plan, "checkpointing").choice == asked


def test_4bit_is_passed_on_and_said():
    plan = make_plan(SPARK, LLAMA, "llama", Request(storage="nf4", optimizer="adamw_8bit"))
    assert plan.storage == "nf4" and plan.optimizer == "adamw_8bit"
    assert decision(plan, "frozen weights").choice == "NF4"
    plain = make_plan(SPARK, LLAMA, "llama", Request())
    assert not any(decision.part == "frozen weights" for decision in plain.decisions)


def test_decisions_are_plain_values_for_the_record():
    for line in make_plan(CPU, LLAMA, "llama", Request()).decisions:
        assert line.as_dict() == {
            "part": line.part,
            "choice": line.choice,
            "why": line.why,
            "fallback": line.fallback,
        }
        assert line.choice and line.why


def test_the_same_facts_give_the_same_plan():
    assert make_plan(CPU, LLAMA, "llama", Request()) == make_plan(CPU, LLAMA, "llama", Request())


def test_determinism_is_said_where_it_costs_something():
    plan = make_plan(SPARK, LLAMA, "llama", Request(deterministic=True))
    assert "adds in one order" in decision(plan, "arithmetic").why
    cpu = make_plan(CPU, LLAMA, "llama", Request(deterministic=True))
    assert all(line.part != "arithmetic" for line in cpu.decisions), "a CPU is repeatable anyway"


WIDTHS = Widths(hidden=4096, query=4096, key_value=1024, mlp=14336)


def activations(asked="auto", machine=SPARK, free=60 * 2**30, **changes):
    given = {"layers": 32, "tokens": 4096, "widths": WIDTHS, "trained_bytes": 2**27, "vocabulary": 128256}
    return choose_activations(machine, asked=asked, free_bytes=free, **{**given, **changes})


@pytest.mark.parametrize(("asked", "policy"), [("on", "recompute"), ("off", "keep")])
def test_activations_as_asked(asked, policy):
    policies, said = activations(asked, free=0)
    assert policies == (policy,) * 32
    assert said.choice == policy and said.why == f"checkpointing: {asked}"


def test_activations_by_memory_at_hand():
    assert set(activations()[0]) == {"keep"}
    some, said = activations(free=20 * 2**30)
    assert len(set(some)) == 2
    assert "x" in said.choice and "GiB for up to 4,096 tokens" in said.why
    kept = sum(4096 * kept_bytes(policy, WIDTHS) for policy in some)
    assert kept <= activation_room(SPARK, 20 * 2**30, 2**27, 4096 * 128256 * 2)


def test_nothing_is_offloaded_where_memory_is_shared():
    assert set(activations(free=0)[0]) == {"recompute"}
    policies, said = activations("offload")
    assert set(policies) == {"recompute"} and "nothing is moved" in said.why
    discrete = dataclasses.replace(SPARK, unified_memory=False)
    assert set(activations(machine=discrete, free=0)[0]) == {"offload"}
    assert set(activations("offload", machine=discrete)[0]) == {"offload"}


@pytest.mark.parametrize(("installed", "choice"), [(True, "Triton"), (False, "plain torch")])
def test_a_gpu_without_triton_is_a_fallback(installed, choice):
    said = choose_kernels(SPARK, installed)
    assert said.choice == choice and said.fallback is not installed
    assert installed or "pip install triton" in said.why
    assert not choose_kernels(CPU, installed).fallback


def test_rows_are_rounded_where_shapes_cost_and_it_is_said():
    cpu, gpu = (make_plan(hardware, LLAMA, "llama", Request()) for hardware in (CPU, SPARK))
    assert (cpu.rounded, gpu.rounded) == (False, True)
    assert "rounded up" in decision(gpu, "rows").why
    assert "no padding is computed" in decision(cpu, "rows").why
    assert not make_plan(SPARK, LLAMA, "llama", Request(packing="off")).rounded


def replay(machine=SPARK, free=100 * 2**30, **changes):
    given = {"fast": True, "alone": True, "dtype": "bfloat16", "layout": "packed", "policies": ("keep",) * 32}
    given |= {"tokens": 4096, "widths": WIDTHS, "trained_bytes": 2**27, "vocabulary": 128256}
    return choose_replay(machine, free_bytes=free, **(given | changes))


def test_micro_batches_are_replayed_on_a_gpu():
    tokens, said = replay()
    assert tokens == 4096 and said is not None and "replayed" in said.choice and not said.fallback
    assert "4,096 tokens" in said.why
    assert replay(CPU) == (0, None)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"fast": False}, "their own code"),
        ({"alone": False}, "several processes"),
        ({"dtype": "float32"}, "float32 asks the device"),
        ({"dtype": "float16"}, "loss scaler"),
        ({"free": 28 * 2**30}, "no memory for 1,024 tokens"),
    ],
)
def test_what_is_launched_one_by_one_says_why(changes, why):
    tokens, said = replay(**changes)
    assert tokens == 0 and said is not None and said.fallback
    assert re.search(why, said.why)


def test_recordings_have_what_the_largest_micro_batch_leaves():
    per_token = 32 * kept_bytes("keep", WIDTHS) + working_bytes(WIDTHS)
    fixed = 100 * 2**30 - activation_room(SPARK, 100 * 2**30, 2**27, 4096 * 128256 * 2) + 2 * LOGITS_BYTES
    assert replay(free=fixed + per_token * (4096 + 3000))[0] == 3000
    assert replay(free=fixed + per_token * (4096 + 1000))[0] == 0


def test_padded_rows_are_no_fallback():
    tokens, said = replay(layout="padded")
    assert tokens == 0 and said is not None and not said.fallback


def test_where_memory_is_watched():
    assert choose_watch(SPARK, "auto") and not choose_watch(SPARK, "off")
    assert choose_watch(CPU, "on") and not choose_watch(CPU, "auto")
