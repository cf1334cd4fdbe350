"""Every kernel against eager torch and torch.compile, at 8,192 rows of an 8B model's widths, in bfloat16.

    python benchmarks/run.py kernels

`share` is bytes moved per second over those of a device copy measured in the same run (reads plus writes); bytes are
those that the operation must move, whoever computes it.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

ROWS, WIDTH, MLP, VOCABULARY = 8192, 4096, 14336, 128256


def run(rows: int = ROWS) -> dict[str, Any]:
    """All kernels; times in microseconds, medians."""
    torch.manual_seed(0)
    copy = _copy_rate()
    results: dict[str, Any] = {"copy_tb_s": copy, "kernels": {}}
    for name, moved, arms in [*_norms(rows), *_layer_norms(rows), *_rope(rows), *_activations(rows), *_four_bit()]:
        line = {arm: _time(call) for arm, call in arms.items()}
        tb_s = moved / line["hasten"] / 1e6
        results["kernels"][name] = {"us": line, "bytes": moved, "tb_s": tb_s, "share": tb_s / copy}
        _say(name, line, f"{tb_s:5.2f} TB/s {100 * tb_s / copy:4.0f} % of copy")
    for name, flop, arms in _losses(rows):
        line = {arm: _time(call, repeat=20) for arm, call in arms.items()}
        results["kernels"][name] = {"us": line, "tflop_s": flop / line["hasten"] / 1e6}
        _say(name, line, f"{flop / line['hasten'] / 1e6:5.0f} TFLOP/s")
    return results


def _say(name: str, line: dict[str, float], figure: str) -> None:
    print(
        f"{name:32s} " + "  ".join(f"{arm} {us:8.1f} us" for arm, us in line.items()) + "  " + figure, file=sys.stderr
    )


def _time(call: Callable[[], Any], repeat: int = 40) -> float:
    """Median in microseconds, with a cold cache; what empties it also hides the time that a launch takes to ask for."""
    cache = torch.empty(2**27, dtype=torch.int64, device="cuda")
    spans = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeat)]
    for _ in range(3):
        call()
    for begin, end in spans:
        cache.zero_()
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(1e3 * begin.elapsed_time(end) for begin, end in spans)


def _copy_rate() -> float:
    source = torch.randn(2**28, device="cuda").to(torch.bfloat16)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _time(lambda: target.copy_(source)) / 1e6


def _made(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda").to(torch.bfloat16)


def _both(function: Callable[..., Any], *inputs: torch.Tensor) -> Callable[..., Any]:
    """Forward and backward of a function of tensors."""

    def call() -> Any:
        leaves = [part.detach().requires_grad_() for part in inputs]
        out = function(*leaves)
        return torch.autograd.grad(out, leaves, torch.ones_like(out))

    return call


def _graph(function: Callable[..., Any], *inputs: torch.Tensor) -> Callable[[], Any]:
    """The backward alone: the graph is built once."""
    leaves = [part.detach().requires_grad_() for part in inputs]
    out = function(*leaves)
    upstream = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, leaves, upstream, retain_graph=True)


def _norms(rows: int) -> list[tuple[str, int, dict[str, Callable[[], Any]]]]:
    from hasten.kernels.rms_norm import op

    x, residual, weight, dy = _made(rows, WIDTH), _made(rows, WIDTH), _made(WIDTH), _made(rows, WIDTH)

    def plain(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)

    def plain_residual(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        h = x + residual
        return h, plain(h, weight)

    compiled, compiled_residual = torch.compile(plain), torch.compile(plain_residual)
    _, rstd, _ = op.forward(x, weight, 1e-6, False)
    frozen = weight.detach()
    forward = {
        "hasten": lambda: op.forward(x, weight, 1e-6, False),
        "eager": lambda: plain(x, weight),
        "compile": lambda: compiled(x, weight),
    }
    with_residual = {
        "hasten": lambda: op.forward(x, weight, 1e-6, False, residual=residual),
        "eager": lambda: plain_residual(x, residual, weight),
        "compile": lambda: compiled_residual(x, residual, weight),
    }
    backward = {
        "hasten": lambda: op.backward(dy, x, rstd, weight, False),
        "eager": _graph(lambda x: plain(x, frozen), x),
        "compile": _graph(lambda x: compiled(x, frozen), x),
    }
    backward_weight = {
        "hasten": lambda: op.backward(dy, x, rstd, weight, False, need_dw=True),
        "eager": _graph(plain, x, weight),
        "compile": _graph(compiled, x, weight),
    }
    size = x.nbytes
    return [
        ("rms_norm", 2 * size, forward),
        ("rms_norm + residual", 4 * size, with_residual),
        ("rms_norm backward", 3 * size, backward),
        ("rms_norm backward with dw", 3 * size, backward_weight),
    ]


def _layer_norms(rows: int) -> list[tuple[str, int, dict[str, Callable[[], Any]]]]:
    from hasten.kernels.layer_norm import op

    x, residual, weight, bias, dy = (
        _made(rows, WIDTH),
        _made(rows, WIDTH),
        _made(WIDTH),
        _made(WIDTH),
        _made(rows, WIDTH),
    )

    def plain(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, (WIDTH,), weight, bias)

    def plain_residual(x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, ...]:
        h = x + residual
        return h, plain(h, weight, bias)

    compiled, compiled_residual = torch.compile(plain), torch.compile(plain_residual)
    _, mean, rstd, _ = op.forward(x, weight, bias, 1e-5)
    forward = {
        "hasten": lambda: op.forward(x, weight, bias, 1e-5),
        "eager": lambda: plain(x, weight, bias),
        "compile": lambda: compiled(x, weight, bias),
    }
    with_residual = {
        "hasten": lambda: op.forward(x, weight, bias, 1e-5, residual=residual),
        "eager": lambda: plain_residual(x, residual),
        "compile": lambda: compiled_residual(x, residual),
    }
    backward = {
        "hasten": lambda: op.backward(dy, x, mean, rstd, weight),
        "eager": _graph(lambda x: plain(x, weight, bias), x),
        "compile": _graph(lambda x: compiled(x, weight, bias), x),
    }
    backward_weight = {
        "hasten": lambda: op.backward(dy, x, mean, rstd, weight, need_dw=True),
        "eager": _graph(plain, x, weight, bias),
        "compile": _graph(compiled, x, weight, bias),
    }
    size = x.nbytes
    return [
        ("layer_norm", 2 * size, forward),
        ("layer_norm + residual", 4 * size, with_residual),
        ("layer_norm backward", 3 * size, backward),
        ("layer_norm backward with dw, db", 3 * size, backward_weight),
    ]


def _rope(rows: int) -> list[tuple[str, int, dict[str, Callable[[], Any]]]]:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    from hasten.kernels.rope import op

    buffer = _made(rows, 48 * 128)
    heads = buffer[:, : 40 * 128].view(rows, 40, 128)  # q and k of 32 + 8 heads, beside v
    query, key = (part.unsqueeze(0).transpose(1, 2) for part in heads.split([32, 8], dim=1))
    angle = torch.randn(rows, 64, device="cuda")
    cos, sin = (torch.cat((table, table), dim=-1).to(torch.bfloat16) for table in (angle.cos(), angle.sin()))
    compiled = torch.compile(apply_rotary_pos_emb)
    arms = {
        "hasten": lambda: op.rotate(heads, cos, sin, out=heads),
        "eager": lambda: apply_rotary_pos_emb(query, key, cos[None], sin[None]),
        "compile": lambda: compiled(query, key, cos[None], sin[None]),
    }
    return [("rope, q and k", 2 * heads.numel() * 2, arms)]


def _activations(rows: int) -> list[tuple[str, int, dict[str, Callable[[], Any]]]]:
    from hasten.kernels.gated_activation import op

    both, da = _made(rows, 2 * MLP), _made(rows, MLP)
    gate, up = both[:, :MLP], both[:, MLP:]
    dgate, dup, out = torch.empty_like(da), torch.empty_like(da), torch.empty_like(da)
    found = []
    kinds = (("silu", F.silu), ("gelu", F.gelu), ("gelu_tanh", lambda g: F.gelu(g, approximate="tanh")))
    for kind, plain in kinds:

        def composed(g: torch.Tensor, u: torch.Tensor, plain: Callable[..., Any] = plain) -> torch.Tensor:
            return plain(g) * u

        compiled = torch.compile(composed)
        forward = {
            "hasten": lambda kind=kind: op.forward(gate, up, kind, out=out),
            "eager": lambda composed=composed: composed(gate, up),
            "compile": lambda compiled=compiled: compiled(gate, up),
        }
        backward = {
            "hasten": lambda kind=kind: op.backward(da, gate, up, kind, dgate=dgate, dup=dup),
            "eager": _graph(composed, gate, up),
            "compile": _graph(compiled, gate, up),
        }
        found += [(f"{kind} gated", 3 * da.nbytes, forward), (f"{kind} gated backward", 5 * da.nbytes, backward)]
    return found


def _four_bit() -> list[tuple[str, int, dict[str, Callable[[], Any]]]]:
    """One weight of NF4 with double quantization back to bfloat16."""
    import importlib.util

    if importlib.util.find_spec("bitsandbytes") is None:
        return []
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Params4bit

    from hasten.kernels.nf4.op import dequantize
    from hasten.kernels.nf4.packed import packed_of

    weight = Params4bit(_made(MLP, WIDTH), requires_grad=False, quant_type="nf4").to("cuda")
    packed, out = packed_of(weight), torch.empty(MLP, WIDTH + 32, device="cuda", dtype=torch.bfloat16)
    assert packed is not None
    arms = {
        "hasten": lambda: dequantize(packed, out[:, :WIDTH]),
        "bitsandbytes": lambda: dequantize_4bit(weight.data, weight.quant_state),
    }
    moved = packed.codes.nbytes + packed.absmax.nbytes + 2 * MLP * WIDTH
    return [("nf4 to bfloat16", moved, arms)]


def _losses(rows: int) -> list[tuple[str, int, dict[str, Callable[[], Any]]]]:
    from hasten.kernels.linear_cross_entropy import linear_cross_entropy
    from hasten.kernels.token_logprobs import token_logprobs

    hidden, weight = 0.1 * _made(rows, WIDTH), 0.1 * _made(VOCABULARY, WIDTH)
    targets = torch.randint(0, VOCABULARY, (rows,), device="cuda")

    def plain(hidden: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")

    def plain_tokens(hidden: torch.Tensor) -> torch.Tensor:
        return -F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="none")

    arms = {
        "hasten": _both(lambda h: linear_cross_entropy(h, weight, targets), hidden),
        "eager": _both(plain, hidden),
        "compile": _both(torch.compile(plain), hidden),
    }
    if hasattr(F, "linear_cross_entropy"):
        arms["torch"] = _both(lambda h: F.linear_cross_entropy(h, weight, targets, reduction="sum"), hidden)
    tokens = {
        "hasten": _both(lambda h: token_logprobs(h, weight, targets), hidden),
        "eager": _both(plain_tokens, hidden),
        "compile": _both(torch.compile(plain_tokens), hidden),
    }
    flop = 4 * rows * WIDTH * VOCABULARY
    return [
        ("linear_cross_entropy, frozen head", flop, arms),
        ("token_logprobs, frozen head", flop, tokens),  # hasten makes the logits twice: flop are those needed once
    ]
