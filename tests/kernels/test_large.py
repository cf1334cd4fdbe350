"""Beyond 2^31 values: the last rows of a tensor that large are what they are alone."""

import pytest
import torch

from hasten.kernels.gated_activation import op as gated_activation
from hasten.kernels.layer_norm import op as layer_norm
from hasten.kernels.linear_cross_entropy.reference import RowMath
from hasten.kernels.rms_norm import op as rms_norm
from hasten.kernels.rope import op as rope

pytestmark = pytest.mark.gpu
LAST = 3
BFLOAT16 = torch.bfloat16


def rows_of(width):
    """So many rows that the last ones begin beyond 2^31 values."""
    return 2**31 // width + 2 * LAST


def large(rows, width):
    return torch.randn(rows, width, device="cuda", dtype=BFLOAT16)


def last(*parts):
    return [part[-LAST:].clone() for part in parts]


def test_rms_norm():
    rows, width = rows_of(4096), 4096
    x, dy, weight = large(rows, width), large(rows, width), torch.randn(width, device="cuda", dtype=BFLOAT16)
    (x_last, dy_last) = last(x, dy)
    y, rstd, _ = rms_norm.forward(x, weight, 1e-6, False)
    y_last, rstd_last, _ = rms_norm.forward(x_last, weight, 1e-6, False)
    assert torch.equal(y[-LAST:], y_last)
    dx, dw = rms_norm.backward(dy, x, rstd, weight, False, dresidual=dy, need_dw=True)
    dx_last, _ = rms_norm.backward(dy_last, x_last, rstd_last, weight, False, dresidual=dy_last)
    assert torch.equal(dx[-LAST:], dx_last)
    assert dw.isfinite().all()


def test_layer_norm():
    rows, width = rows_of(4096), 4096
    x, dy = large(rows, width), large(rows, width)
    weight, bias = (torch.randn(width, device="cuda", dtype=BFLOAT16) for _ in range(2))
    (x_last, dy_last) = last(x, dy)
    y, mean, rstd, _ = layer_norm.forward(x, weight, bias, 1e-6)
    y_last, mean_last, rstd_last, _ = layer_norm.forward(x_last, weight, bias, 1e-6)
    assert torch.equal(y[-LAST:], y_last)
    dx = layer_norm.backward(dy, x, mean, rstd, weight)[0]
    assert torch.equal(dx[-LAST:], layer_norm.backward(dy_last, x_last, mean_last, rstd_last, weight)[0])


@pytest.mark.parametrize("interleaved", [False, True])
def test_rope(interleaved):
    heads, width = 40, 128
    rows = rows_of(heads * width)
    x = large(rows, heads * width).view(rows, heads, width)
    angle = torch.randn(rows, width // 2, device="cuda").repeat(1, 2)
    cos, sin = angle.cos(), angle.sin()
    x_last, cos_last, sin_last = last(x, cos, sin)
    wanted = rope.rotate(x_last, cos_last, sin_last, interleaved=interleaved)
    rope.rotate(x, cos, sin, out=x, interleaved=interleaved)
    assert torch.equal(x[-LAST:], wanted)


@pytest.mark.parametrize("adapter", [False, True])
def test_gated_activation(adapter):
    width, columns = 14336, 16
    rows = rows_of(width)
    both, da = large(rows, 2 * width), large(rows, width)
    lora = (large(rows, columns), large(columns, width)) if adapter else None
    both_last, da_last = last(both, da)
    lora_last = (lora[0][-LAST:].clone(), lora[1]) if lora else None
    out = torch.empty_like(da)
    gated_activation.forward(both[:, :width], both[:, width:], "silu", out=out)
    wanted = gated_activation.forward(both_last[:, :width], both_last[:, width:], "silu")
    assert torch.equal(out[-LAST:], wanted)
    wanted = gated_activation.backward(da_last, both_last[:, :width], both_last[:, width:], "silu", lora=lora_last)
    gate, up = both[:, :width], both[:, width:]
    gated_activation.backward(da, gate, up, "silu", dgate=gate, dup=up, lora=lora)
    assert torch.equal(both[-LAST:], torch.cat(wanted, dim=1))


def test_losses_of_rows():
    from hasten.kernels.linear_cross_entropy import triton as kernels

    vocabulary = 128256
    rows = rows_of(vocabulary)
    x, targets = large(rows, vocabulary), torch.randint(vocabulary, (rows,), device="cuda")
    x_last, targets_last = last(x, targets)
    losses = kernels.rows_loss(x, targets, RowMath(), gradient=True)
    losses_last = kernels.rows_loss(x_last, targets_last, RowMath(), gradient=True)
    assert torch.equal(losses[-LAST:], losses_last)
    assert torch.equal(x[-LAST:], x_last)
