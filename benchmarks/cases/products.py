"""The small decisions of the blocks, one by one: products with adapters, copies, the activation with its adapter.

    python benchmarks/run.py products

At the shapes of an 8B model, 4,096 tokens, bfloat16; times in microseconds. `chosen` names what the blocks do. Trained
weights also at the shapes of a 1B model, 8,192 tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from cases.kernels import _made, _time
from torch.nn import functional as F

TOKENS, WIDTH, MLP, GATE_UP, QKV = 4096, 4096, 14336, 28672, 6144


def run() -> dict[str, Any]:
    """All comparisons, each between ways to compute one thing."""
    torch.manual_seed(0)
    results = {}
    for name, chosen, ways in [*_widened(), *_residual(), *_factors(), *_copies(), *_activation(), *_trained()]:
        times = {way: _time(call) for way, call in ways.items()}
        results[name] = {"chosen": chosen, "us": times}
        print(f"{name:32s}", {way: round(us, 1) for way, us in times.items()}, file=sys.stderr)
    return {"comparisons": results}


Comparison = tuple[str, str, dict[str, Callable[[], Any]]]


def _widened() -> list[Comparison]:
    """An adapter as columns of the weight against adding its product afterwards."""
    found: list[Comparison] = []
    for name, outputs, inputs in (("q, k, v", QKV, WIDTH), ("gate, up", GATE_UP, WIDTH), ("down", WIDTH, MLP)):
        x, wide_x = _made(TOKENS, inputs), _made(TOKENS, inputs + 64)
        weight, wide, columns, xa = (
            _made(outputs, inputs),
            _made(outputs, inputs + 64),
            _made(outputs, 64),
            _made(TOKENS, 64),
        )

        def plain(x: torch.Tensor = x, weight: torch.Tensor = weight) -> torch.Tensor:
            return F.linear(x, weight)

        def as_columns(x: torch.Tensor = wide_x, weight: torch.Tensor = wide) -> torch.Tensor:
            return F.linear(x, weight)

        def added(
            x: torch.Tensor = x, weight: torch.Tensor = weight, xa: torch.Tensor = xa, columns: torch.Tensor = columns
        ) -> torch.Tensor:
            return F.linear(x, weight).addmm_(xa, columns.t())

        ways = {"without adapter": plain, "columns": as_columns, "added": added}
        found.append((f"adapter of {name}", "columns", ways))
    return found


def _residual() -> list[Comparison]:
    """The residual added by the product, or after it."""
    found: list[Comparison] = []
    for inputs in (WIDTH, MLP):
        x, weight, residual = _made(TOKENS, inputs + 64), _made(WIDTH, inputs + 64), _made(TOKENS, WIDTH)

        def after(
            x: torch.Tensor = x, weight: torch.Tensor = weight, residual: torch.Tensor = residual
        ) -> torch.Tensor:
            return F.linear(x, weight).add_(residual)

        def within(
            x: torch.Tensor = x, weight: torch.Tensor = weight, residual: torch.Tensor = residual
        ) -> torch.Tensor:
            return torch.addmm(residual, x, weight.t())

        found.append((f"residual, {inputs} inputs", "after", {"after": after, "within": within}))
    return found


def _factors() -> list[Comparison]:
    """The gradients of B of a group: one product, or one for each projection."""
    wide = torch.float32
    xa = _made(TOKENS, WIDTH + 64)[:, WIDTH:]
    found: list[Comparison] = []
    for name, rows in (("q, k, v", (4096, 1024, 1024)), ("gate, up", (MLP, MLP))):
        dy, ends = _made(TOKENS, sum(rows)), [sum(rows[:place]) for place in range(len(rows) + 1)]

        def joint(dy: torch.Tensor = dy, used: int = 16 * len(rows)) -> torch.Tensor:
            return torch.mm(dy.t(), xa[:, :used], out_dtype=wide)

        def each(dy: torch.Tensor = dy, ends: list[int] = ends) -> list[torch.Tensor]:
            return [
                torch.mm(dy[:, start:end].t(), xa[:, 16 * place : 16 * place + 16], out_dtype=wide)
                for place, (start, end) in enumerate(zip(ends[:-1], ends[1:], strict=True))
            ]

        found.append((f"gradients of B, {name}", "joint", {"joint": joint, "each": each}))
    return found


def _copies() -> list[Comparison]:
    """Rows into wider rows."""
    from hasten.kernels.rows import copy_rows

    source, target = _made(TOKENS, WIDTH), _made(TOKENS, WIDTH + 64)[:, :WIDTH]
    ways = {"torch": lambda: target.copy_(source), "words": lambda: copy_rows(target, source)}
    return [("rows into wider rows", "words", ways)]


def _activation() -> list[Comparison]:
    """The adapter's part of the gradient inside the activation's backward, or added before."""
    from hasten.kernels.gated_activation import op

    both, da, A = _made(TOKENS, 2 * MLP), _made(TOKENS, MLP + 64), _made(64, MLP)  # noqa: N806
    out = torch.empty_like(both)
    targets = {"dgate": out[:, :MLP], "dup": out[:, MLP:]}
    gate, up = both[:, :MLP], both[:, MLP:]

    def inside(columns: int) -> Callable[[], Any]:
        lora = (da[:, MLP : MLP + columns], A[:columns])
        return lambda: op.backward(da[:, :MLP], gate, up, "silu", lora=lora, **targets)

    def before() -> Any:
        return op.backward(da[:, :MLP].addmm_(da[:, MLP : MLP + 16], A[:16]), gate, up, "silu", **targets)

    ways = {"inside, 16 columns": inside(16), "inside, 64 columns": inside(64), "before": before}
    return [("activation backward with adapter", "inside, 16 columns", ways)]


def _trained() -> list[Comparison]:
    """y and dx of a weight that is trained: its codes have to be made anew at every step, in both layouts."""
    from hasten.kernels.fp8.op import product, quantize_rows, transpose

    found: list[Comparison] = []
    for model, tokens, shapes in (
        ("1B", 8192, ((3072, 2048), (2048, 2048), (16384, 2048), (2048, 8192))),
        ("8B", 4096, ((QKV, WIDTH), (WIDTH, WIDTH), (GATE_UP, WIDTH), (WIDTH, MLP))),
    ):
        layer = [
            (_made(tokens, inputs), _made(outputs, inputs), _made(tokens, outputs), torch.ones(inputs, device="cuda"))
            for outputs, inputs in shapes
        ]

        def coded(layer: list[tuple[torch.Tensor, ...]] = layer) -> list[tuple[torch.Tensor, ...]]:
            made = []
            for x, weight, dy, ones in layer:
                w8, scale = quantize_rows(weight)
                forward = (*quantize_rows(x), w8, scale[:, 0])
                made.append((*forward, *quantize_rows(dy, scale[:, 0]), transpose(w8), ones))
            return made

        def in_16_bits(layer: list[tuple[torch.Tensor, ...]] = layer) -> list[torch.Tensor]:
            return [part for x, weight, dy, _ in layer for part in (F.linear(x, weight), dy @ weight)]

        def products(codes: list[tuple[torch.Tensor, ...]]) -> list[torch.Tensor]:
            return [product(*part, dtype=torch.bfloat16) for code in codes for part in (code[:4], code[4:])]

        codes = coded()
        ways = {
            "bfloat16": in_16_bits,
            "8 bit, products alone": lambda codes=codes: products(codes),
            "8 bit": lambda coded=coded: products(coded()),
        }
        found.append((f"trained layer, {model}", "bfloat16", ways))
    return found
