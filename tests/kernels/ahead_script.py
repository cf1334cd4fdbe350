"""A script: compiles every kernel, as its launcher would launch it, for chips that are not here.

``python ahead_script.py 121`` prints one line of JSON per kernel and launch: its name, the chip, the bytes of shared
memory. Launchers run on CPU tensors with a stand-in for each kernel, which keeps the arguments. For chips of the same
sizes that are named after it (``121 120``), of each kernel the launch that takes the most shared memory is compiled.
"""

import json
import sys
from functools import partial
from types import SimpleNamespace

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from hasten.kernels import trial
from hasten.kernels.column_sums import triton as column_sums
from hasten.kernels.compensated_rounding import triton as compensated_rounding
from hasten.kernels.fp8 import triton as fp8
from hasten.kernels.gated_activation import triton as gated_activation
from hasten.kernels.layer_norm import triton as layer_norm
from hasten.kernels.linear_cross_entropy import triton as linear_cross_entropy
from hasten.kernels.linear_cross_entropy.reference import RowMath
from hasten.kernels.nf4 import triton as nf4
from hasten.kernels.nf4.packed import Nested, Packed
from hasten.kernels.rms_norm import triton as rms_norm
from hasten.kernels.rope import triton as rope
from hasten.kernels.row_scaled import triton as row_scaled
from hasten.kernels.row_scaled.rows import RowScaled
from hasten.kernels.scaled_copies import triton as scaled_copies

MODULES = [
    trial, column_sums, compensated_rounding, fp8, gated_activation, layer_norm, linear_cross_entropy, nf4, rms_norm,
    rope, row_scaled, scaled_copies,
]  # fmt: skip
CHIPS = {90: (132, 232_448), 120: (48, 101_376), 121: (48, 101_376)}
"""Multiprocessors, and bytes of shared memory that a program may ask for: CUDA's tables of compute capabilities."""

ROWS = 4096
BF16, FP32, U8, FP8 = torch.bfloat16, torch.float32, torch.uint8, torch.float8_e4m3fn
NAMES = {
    torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.uint8: "u8", torch.int8: "i8",
    torch.int32: "i32", torch.int64: "i64", torch.float8_e4m3fn: "fp8e4nv",
}  # fmt: skip

empty = torch.empty  # nothing is read: memory is only reserved


def norms(dtype, width):
    x, w, rstd = empty(ROWS, width, dtype=dtype), empty(width, dtype=dtype), empty(ROWS)
    eight = (empty(ROWS, width, dtype=FP8), empty(ROWS, 1))
    rms_norm.rms_norm_fwd(x, w, 1e-6, False, residual=x, eight=eight)
    rms_norm.rms_norm_bwd(x, x, rstd, w, True, x, need_dw=True)
    rms_norm.rms_norm_bwd(x, x, rstd, w, False, x, need_dw=False)
    layer_norm.layer_norm_fwd(x, w, w, 1e-6, residual=x)
    layer_norm.layer_norm_bwd(x, x, rstd, rstd, w, x, need_dw=True)


def head_norms(dtype):
    x, w, rstd = empty(ROWS, 32, 128, dtype=dtype), empty(128, dtype=dtype), empty(ROWS, 32)
    rms_norm.rms_norm_fwd(x, w, 1e-6, False)
    rms_norm.rms_norm_bwd(x, x, rstd, w, False, None, need_dw=True)


def losses(dtype, vocabulary):
    x, target = empty(ROWS, vocabulary, dtype=dtype), empty(ROWS, dtype=torch.int64)
    everything = RowMath(softcap=30.0, label_smoothing=0.1, z_loss=1e-4)
    linear_cross_entropy.rows_loss(x, target, RowMath(), gradient=True)
    linear_cross_entropy.rows_loss(x, target, everything, gradient=True, upstream_R=empty(ROWS))


def activations(dtype, columns, kind):
    g, eight = empty(ROWS, columns, dtype=dtype), (empty(ROWS, columns, dtype=FP8), empty(ROWS, 1))
    gated_activation.forward(g, g, kind, g)
    gated_activation.forward(g, g, kind, g, eight)
    gated_activation.backward(g, g, g, kind, g, g, g)
    for rank in (16, 64, 128):
        lora = empty(ROWS, rank, dtype=dtype), empty(rank, columns, dtype=dtype)
        gated_activation.backward(g, g, g, kind, g, g, g, lora)


def rotations(dtype, heads, kept, width, part):
    q, k = empty(ROWS, heads, width, dtype=dtype), empty(ROWS, kept, width, dtype=dtype)
    angle = empty(ROWS, part, dtype=dtype)
    for interleaved in (False, True):
        rope.rotate(q, angle, angle, torch.empty_like(q), False, interleaved)
        rope.join(q, k, k, angle, angle, empty(ROWS, (heads + 2 * kept) * width, dtype=dtype), interleaved)


def weights(dtype, rows, columns):
    B, out = empty(rows, 16, dtype=dtype), empty(rows, columns + 16, dtype=dtype)
    codes, blocks, levels = empty(rows * columns // 2, dtype=U8), rows * columns // 64, empty(16)
    nested = Nested(empty(blocks // 256 + 1), empty(256), empty(()), 256)
    for scales, inner in ((empty(blocks), None), (empty(blocks, dtype=U8), nested)):
        packed = Packed(codes, scales, levels, (rows, columns), 64, dtype, inner)
        nf4.dequantize(packed, out, B, 0)
        for turned in (False, True):
            shape = (columns, rows) if turned else (rows, columns)
            nf4.to_fp8(packed, empty(rows), empty(shape, dtype=FP8), turned)
    for kind in (torch.int8, U8):
        row_scaled.dequantize(RowScaled(empty(rows, columns, dtype=kind), empty(rows), dtype), out, B, 0)
    blocked = RowScaled(empty(rows, columns, dtype=U8), empty(rows // 128, columns // 128), dtype, (128, 128))
    row_scaled.dequantize(blocked, out, B, 0)
    fp8.quantize_rows(
        empty(ROWS, columns, dtype=dtype), empty(columns), empty(ROWS, columns, dtype=FP8), empty(ROWS, 1), 448.0, 1e-9
    )
    fp8.transpose(empty(rows, columns, dtype=FP8), empty(columns, rows, dtype=FP8))


def rounding(group):
    square = empty(ROWS, group)
    codes = empty(ROWS, group, dtype=U8)
    compensated_rounding.round_group(square, square, empty(group, group), empty(16), empty(15), codes, square)


def the_rest():
    like = empty(4, dtype=FP32), empty(4, dtype=BF16)
    scaled_copies.run(empty(8, 2, dtype=torch.int64), empty(8, 5, dtype=torch.int64), empty(8), like)
    column_sums.column_sums(empty(132, 4096))
    trial.doubled_kernel[(1,)](empty(100), empty(100), 100, BLOCK=128)


CASES = [
    *(partial(norms, BF16, width) for width in (576, 4096, 8192)),
    *(partial(norms, FP32, width) for width in (4096, 8192, 16384)),
    partial(head_norms, BF16),
    partial(losses, BF16, 151_936), partial(losses, FP32, 32_000),
    partial(activations, BF16, 14_336, "silu"), partial(activations, FP32, 6912, "gelu_tanh"),
    partial(rotations, BF16, 64, 8, 128, 128), partial(rotations, FP32, 8, 4, 256, 64),
    partial(weights, BF16, 512, 14_336), partial(weights, FP32, 256, 28_672),
    partial(rounding, 64), partial(rounding, 128),
    the_rest,
]  # fmt: skip


class Launches:
    """Stands for a kernel: keeps what it is launched with."""

    def __init__(self, kernel, kept):
        self.kernel, self.kept = kernel, kept

    def __getitem__(self, grid):
        return lambda *arguments, **named: self.kept.append((self.kernel, arguments, named))


def launches(chip):
    """Every launch of every case, with the sizes that its launcher chooses on a chip."""
    kept = []
    column_sums._device = lambda device: CHIPS[chip]
    for module in MODULES:
        for name, kernel in list(vars(module).items()):
            if isinstance(kernel, JITFunction) and name.endswith("_kernel"):
                setattr(module, name, Launches(kernel, kept))
    for case in CASES:
        case()
    return kept


def source_of(kernel, arguments, named):
    """What Triton compiles for a launch: types, constants, and what is divisible by 16; and its options."""
    values = dict(zip(kernel.arg_names, arguments, strict=False))
    values |= {name: value for name, value in named.items() if name in kernel.arg_names}
    options = {name: value for name, value in named.items() if name not in kernel.arg_names}
    if "WIDE" in values:  # on a GPU it goes by the type; here there is none
        values["WIDE"] = values["g_ptr"].dtype == torch.float32
    signature, constants, hints = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
            continue
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = f"*{NAMES[value.dtype]}"
        else:
            wide = isinstance(value, int) and value >= 2**31
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i64" if wide else "i32"
        if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
            hints[(place,)] = [["tt.divisibility", 16]]
    key = json.dumps([kernel.__name__, signature, constants, sorted(map(str, hints)), options], default=str)
    return SimpleNamespace(
        key=key, options=options, sizes=constants,
        ast=lambda: ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=hints),
    )  # fmt: skip


def compile_for(chip, kernel, source):
    """Compile a launch and print its line; the bytes of shared memory."""
    compiled = triton.compile(source.ast(), target=GPUTarget("cuda", chip, 32), options=source.options)
    line = {
        "kernel": kernel.__name__,
        "module": kernel.__module__,
        "chip": chip,
        "shared": compiled.metadata.shared,
        "binary": len(compiled.asm["cubin"]),
        "sizes": {name: value for name, value in source.sizes.items() if name.isupper()},
        "options": source.options,
    }
    print(json.dumps(line), flush=True)
    return compiled.metadata.shared


def main(chip, *like_it):
    assert all(CHIPS[each] == CHIPS[chip] for each in like_it)
    done, largest = set(), {}
    for kernel, arguments, named in launches(chip):
        source = source_of(kernel, arguments, named)
        if source.key in done:
            continue
        done.add(source.key)
        shared = compile_for(chip, kernel, source)
        if shared > largest.get(kernel.__name__, (-1,))[0]:
            largest[kernel.__name__] = (shared, kernel, source)
    for each in like_it:
        for _, kernel, source in largest.values():
            compile_for(each, kernel, source)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
