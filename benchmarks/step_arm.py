"""One arm of a training-step case, in a process of its own: `python benchmarks/step_arm.py SPEC.json`.

The model has random weights from one seed and the shape that the spec gives; rows are full and random, the same for
every arm. A step is forward, backward and fused AdamW. `step_ms_p50` waits for the device after every step,
`running_step_ms` only at the end, as a training loop does. Prints one JSON object on its last line.
"""

from __future__ import annotations

import importlib
import json
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from card import watched
from model_shapes import SHAPES

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make_model(spec: dict[str, Any], device: str) -> Any:
    """The model with its adapter, as the arm wants it."""
    arm = spec["arm"]
    if arm.startswith("liger"):
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama()
    if arm.startswith("unsloth") or arm == "hasten-api":
        return _through_api(spec, device, "unsloth" if arm.startswith("unsloth") else "hasten").train()
    model = _base(spec, device)
    if "qlora" in arm:
        _quantize(model)
    if "w8" in arm.split("-"):
        _keep_in_8_bits(model)
    if spec["lora"]:
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=16, target_modules=TARGETS)
        model = _filled(get_peft_model(model, lora))
    return model.train()


def _base(spec: dict[str, Any], device: str) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    config = LlamaConfig(**SHAPES[spec["shape"]], max_position_embeddings=max(8192, spec["length"]), dtype=dtype)
    with torch.device(device):
        return LlamaForCausalLM._from_config(config, attn_implementation="sdpa", dtype=dtype)


def _quantize(model: Any) -> None:
    """Every linear layer but the head as bitsandbytes' NF4 with double quantization, one by one."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for name, module in list(model.named_modules()):
        if type(module) is torch.nn.Linear and name != "lm_head":
            with torch.device("meta"):
                made = Linear4bit(
                    module.in_features,
                    module.out_features,
                    bias=False,
                    compute_dtype=module.weight.dtype,
                    quant_type="nf4",
                )
            weight = Params4bit(module.weight.data, requires_grad=False, quant_type="nf4", module=made)
            made.weight = weight.to(module.weight.device)
            made.support_avx512bf16_for_cpu = False
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, made)
            module.weight = None
    model.is_loaded_in_4bit = True  # PEFT asks


def _keep_in_8_bits(model: Any) -> None:
    """Every linear layer but the head as hasten's 8-bit floats."""
    from hasten.kernels.row_scaled.op import quantize
    from hasten.loading.eight_bit import Fp8Linear

    for name, module in list(model.named_modules()):
        if type(module) is torch.nn.Linear and name != "lm_head":
            eight = quantize(module.weight.data)
            made = Fp8Linear(module.in_features, module.out_features, False, module.weight.dtype)
            made.weight = torch.nn.Parameter(eight.codes, requires_grad=False)
            made.weight_scale = eight.scale[:, None].clone()
            model.set_submodule(name, made)
            module.weight = None


def _filled(model: Any) -> Any:
    """The same factors for every arm; B is not zero as in a fresh adapter, or A would have no gradient to compare."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_A" in name:
                parameter.uniform_(-(parameter.shape[1] ** -0.5), parameter.shape[1] ** -0.5)
            elif "lora_B" in name:
                parameter.normal_(0, 1e-3)
    return model


def _through_api(spec: dict[str, Any], device: str, module: str) -> Any:
    """The model as a script for Unsloth gets it, from a folder; `module` is unsloth or hasten."""
    api = importlib.import_module(module).FastLanguageModel
    from job_case import copy_tokenizer, embedded_tokenizer

    with TemporaryDirectory() as folder:
        _base(spec, device).save_pretrained(folder)
        copy_tokenizer(spec.get("tokenizer") or embedded_tokenizer(), folder)
        model, _ = api.from_pretrained(folder, max_seq_length=spec["length"], dtype=None, load_in_4bit=False)
    model = api.get_peft_model(
        model,
        r=16,
        lora_alpha=16,
        lora_dropout=0,
        bias="none",
        target_modules=TARGETS,
        use_gradient_checkpointing=False if spec["arm"].endswith("-nockpt") else "unsloth",
    )
    return _filled(model)


def make_step(spec: dict[str, Any], model: Any, batch: torch.Tensor) -> Any:
    """One forward and backward of the arm; returns the mean loss as a tensor."""
    arm = spec["arm"]
    checkpointed = not arm.endswith("-nockpt") and not arm.startswith(("hasten", "unsloth"))
    autocast = torch.autocast(batch.device.type, torch.bfloat16, enabled=batch.is_cuda)
    if arm.startswith("hasten") and arm != "hasten-api":
        from hasten.blocks.apply import apply, set_policies
        from hasten.blocks.projections import Compute8

        named = arm.removesuffix("-fp8").partition("-")[2]
        policies = {
            "": "keep",
            "launched": "keep",
            "qlora": "offload",
            "qlora-free": "keep",
            "w8": "offload",
            "w8-free": "keep",
        }
        policy: Any = policies.get(named, named)
        turned = named != "w8"  # where memory is short, as the Plan decides
        applied = apply(model, compute8=Compute8(turned=turned) if arm.endswith("-fp8") else None)
        assert applied.complete and not applied.refused_8, applied.line()
        set_policies(model, [policy] * applied.of)
        return _packed_step(model, batch, replayed=named != "launched")
    if checkpointed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    if arm.startswith("compile"):
        for layer in model.get_base_model().model.layers if spec["lora"] else model.model.layers:
            layer.compile()

    def step() -> torch.Tensor:
        with autocast:
            loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        return loss.detach()

    return step


def _packed_step(model: Any, batch: torch.Tensor, *, replayed: bool) -> Any:
    """As hasten's trainer runs it: the rows are documents of one packed row, recorded and replayed on a GPU."""
    from hasten.blocks.apply import replay_state
    from hasten.blocks.packed_attention import packed_attention
    from hasten.data.packing import PackedCollator
    from hasten.training.replay import Replay

    examples = [{"input_ids": row, "labels": row} for row in batch.tolist()]
    packed = PackedCollator(rounded=batch.is_cuda)(examples)  # type: ignore[arg-type]
    tokens, _ = packed.pop("counts")
    packed["hasten_targets"] = packed.pop("labels")[0, packed["logits_to_keep"] + 1]

    def compute(inputs: dict[str, Any], divisor: torch.Tensor) -> torch.Tensor:
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=batch.is_cuda):
            loss = model(**inputs).loss / divisor
            loss.backward()
        return loss.detach()

    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    replay = Replay(compute, learnt, replay_state(model)) if replayed and batch.is_cuda else None
    moved = {name: part.to(batch.device) if isinstance(part, torch.Tensor) else part for name, part in packed.items()}
    divisor = torch.full((), tokens, device=batch.device)

    def step() -> torch.Tensor:
        with packed_attention(model):
            return compute(moved, divisor) if replay is None else replay.run(moved, tokens).clone()

    return step


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Times, memory, losses and the first gradient norm."""
    started = time.perf_counter()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = make_model(spec, device)
    generator = torch.Generator().manual_seed(2)
    vocab = SHAPES[spec["shape"]]["vocab_size"]
    batch = torch.randint(0, vocab, (spec["batch"], spec["length"]), generator=generator).to(device)
    step = make_step(spec, model, batch)
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=1e-4, fused=device == "cuda", weight_decay=0.0)
    losses, times, asked, norm, first = [], [], [], None, None
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def whole() -> torch.Tensor:
        loss = step()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    for number in range(spec["warmup"] + spec["steps"]):
        _wait(device)
        begun = time.perf_counter()
        if number == 0:
            losses.append(step())
            norm = float(torch.nn.utils.get_total_norm([parameter.grad for parameter in learnt]))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        else:
            losses.append(whole())
        asked.append(time.perf_counter() - begun)
        _wait(device)
        if number == 0:
            first = time.perf_counter() - started
        times.append(time.perf_counter() - begun)
    card: dict[str, float] = {}
    with watched(card):
        begun = time.perf_counter()
        for _ in range(spec["steps"]):  # as a training loop runs: nobody waits between steps
            losses.append(whole())
        _wait(device)
        running = (time.perf_counter() - begun) / spec["steps"]
    steady = sorted(times[spec["warmup"] :])
    tokens = batch.numel()
    median = statistics.median(steady)
    result = {
        "real_tok_s": tokens / median,
        "supervised_tok_s": spec["batch"] * (spec["length"] - 1) / median,
        "nominal_tok_s": tokens / median,
        "samples_s": spec["batch"] / median,
        "running_tok_s": tokens / running,
        "step_ms_p50": 1e3 * median,
        "running_step_ms": 1e3 * running,
        "step_ms_p20": 1e3 * steady[len(steady) // 5],
        "step_ms_p80": 1e3 * steady[-1 - len(steady) // 5],
        "cpu_ms_p50": 1e3 * statistics.median(asked[spec["warmup"] :]),
        "first_step_s": first,
        "loss_first": float(losses[0]),
        "loss_last": float(losses[-1]),
        "grad_norm": norm,
    }
    if card:
        result["card"] = card
    if device == "cuda":
        result["peak_allocated_gb"] = torch.cuda.max_memory_allocated() / 1e9
        result["peak_reserved_gb"] = torch.cuda.max_memory_reserved() / 1e9
    if spec.get("profile"):
        result["profile"] = profile(step, optimizer, spec["profile"])
    return result


def profile(step: Any, optimizer: Any, rows: int) -> dict[str, Any]:
    """Where one step's time goes: kernels by total time, and the idle time between them."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    with torch_profile(activities=[ProfilerActivity.CUDA]) as run:
        step()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
    return summary(run.events(), rows)


def summary(events: Any, rows: int) -> dict[str, Any]:
    """A profile's device events as totals per kernel and the idle times between them.

    Args:
        events: of a finished `torch.profiler.profile`.
        rows: how many kernels are listed.
    """
    spans = sorted(
        (event.time_range.start, event.time_range.end, event.name)
        for event in events
        if event.device_type.name == "CUDA"
    )
    totals: dict[str, list[float]] = {}
    idle, gaps, last = 0.0, [], spans[0][0]
    for place, (start, end, name) in enumerate(spans):
        total = totals.setdefault(name[:90], [0.0, 0])
        total[0] += (end - start) / 1e3
        total[1] += 1
        if start > last:
            idle += start - last
            gaps.append((start - last, place / len(spans), spans[place - 1][2][:60], name[:60]))
        last = max(last, end)
    largest = sorted(totals.items(), key=lambda item: -item[1][0])
    return {
        "busy_ms": sum(total for total, _ in totals.values()),
        "idle_ms": idle / 1e3,
        "span_ms": (last - spans[0][0]) / 1e3,
        "launches": len(spans),
        "gaps": [
            {"us": us, "at": at, "after": after, "before": before}
            for us, at, after, before in sorted(gaps, reverse=True)[: rows // 2]
        ],
        "kernels": [{"name": name, "calls": calls, "ms": ms} for name, (ms, calls) in largest[:rows]],
    }


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
