"""One QLoRA step of an 8B shape on the longest row that fits: NF4 weights, inputs of layers in host memory.

    python benchmarks/run.py longest_8b [length=262144]

One whole step (forward, backward, AdamW) is measured, nothing is extrapolated. Before it, attention at this length is
compared with float32: its last queries see everything, and their gradients reach every key.
"""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import torch
from model_shapes import SHAPES
from step_arm import make_model, make_step

LAST = 128
"""Queries that are compared."""
ALLOWED = 2.0**-6
"""Of the norm; values and probabilities are rounded to bfloat16 (2^-9 each) on the way."""


def run(length: int = 262144, arm: str = "hasten-qlora") -> dict[str, Any]:
    """Raises where attention is wrong at this length, or the step is not finite."""
    off = attention_error(length)
    print(f"attention, {length} tokens: off by {off}", file=sys.stderr, flush=True)
    if not all(value <= ALLOWED for value in off.values()):
        raise SystemExit(f"attention over {length} tokens is off by {off} of its norm")
    torch.cuda.empty_cache()
    spec = {"shape": "8b", "lora": True, "batch": 1, "length": length, "arm": arm}
    model = make_model(spec, "cuda")
    torch.cuda.empty_cache()
    generator = torch.Generator().manual_seed(2)
    batch = torch.randint(0, SHAPES["8b"]["vocab_size"], (1, length), generator=generator).cuda()
    step = make_step(spec, model, batch)
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=1e-4, fused=True, weight_decay=0.0)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    loss = step()
    norm = float(torch.nn.utils.get_total_norm([parameter.grad for parameter in learnt]))
    optimizer.step()
    torch.cuda.synchronize()
    seconds = time.perf_counter() - begun
    if not torch.tensor([float(loss), norm]).isfinite().all():
        raise SystemExit(f"not finite: loss {float(loss)}, gradient norm {norm}")
    result = {
        "seconds": seconds,
        "real_tok_s": length / seconds,
        "loss_first": float(loss),
        "grad_norm": norm,
        "peak_allocated_gb": torch.cuda.max_memory_allocated() / 1e9,
        "peak_reserved_gb": torch.cuda.max_memory_reserved() / 1e9,
        "host_peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }
    print(arm, result, file=sys.stderr, flush=True)
    return {"spec": spec, "attention_error": off, "arms": {arm: result}}


def attention_error(length: int, heads: int = 32, shared: int = 8, width: int = 128) -> dict[str, float]:
    """Output and gradients of the last queries against float32, relative norms; memory as a block lays it out."""
    from hasten.blocks.attention import View, attend

    torch.manual_seed(0)
    buffer = torch.randn(length, (heads + 2 * shared) * width, device="cuda", dtype=torch.bfloat16)
    parts = [part.view(1, length, -1, width) for part in buffer.split([heads * width, *[shared * width] * 2], dim=1)]
    view = View(cu_seq_lens=torch.tensor([0, length], dtype=torch.int32, device="cuda"), longest=length)
    attended = attend(parts[0], parts[1], parts[2], view, learn=True)
    upstream = torch.zeros_like(attended.output_BTHD)
    upstream[:, -LAST:] = torch.randn(1, LAST, heads, width, device="cuda", dtype=torch.bfloat16)
    gradients = attended.backward(upstream)
    sums = {name: [0.0, 0.0] for name in ("output", "dq", "dk", "dv")}
    group = heads // shared
    hidden = torch.arange(length, device="cuda")[None] > torch.arange(length - LAST, length, device="cuda")[:, None]
    for number in range(0, shared, 4):  # heads of a few groups are enough
        own = slice(number * group, (number + 1) * group)
        query = parts[0][0, -LAST:, own].float().requires_grad_()
        key, value = (part[0, :, number].float().requires_grad_() for part in parts[1:])
        scores = torch.einsum("qhe,ke->hqk", query, key) / width**0.5
        wanted = torch.einsum("hqk,ke->qhe", scores.masked_fill(hidden, -torch.inf).softmax(-1), value)
        wanted.backward(upstream[0, -LAST:, own].float())
        found = {
            "output": (attended.output_BTHD[0, -LAST:, own], wanted.detach()),
            "dq": (gradients[0][0, -LAST:, own], query.grad),
            "dk": (gradients[1][0, :, number], key.grad),
            "dv": (gradients[2][0, :, number], value.grad),
        }
        for name, (mine, theirs) in found.items():
            assert theirs is not None
            sums[name][0] += float((mine.float() - theirs).square().sum())
            sums[name][1] += float(theirs.square().sum())
    return {name: (away / whole) ** 0.5 for name, (away, whole) in sums.items()}
