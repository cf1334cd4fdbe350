"""8-bit weights come back as codes times scales, in floats and whole numbers."""

from dataclasses import replace

import pytest
import torch

from hasten.kernels.row_scaled.op import dequantize, quantize
from hasten.kernels.row_scaled.rows import RowScaled, row_scaled_of


def made(device, shape, *, floats, seed=0):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    codes[(codes & 0x7F) == 0x7F] = 0  # NaN has a test of its own
    codes = codes if floats else codes.view(torch.int8)
    scale = torch.rand(shape[0], generator=generator) + 0.1
    return RowScaled(codes.to(device), scale.to(device), torch.float32)


def values(weight):
    codes = weight.as_floats() if weight.floats else weight.codes
    return codes.to(torch.float64) * weight.scale.double()[:, None]


def require_rounded(own, wanted, impl):
    """One rounding of the product of two float32; Triton's interpreter cuts bfloat16 off instead."""
    cut = impl == "triton" and own.dtype == torch.bfloat16 and not own.is_cuda
    steps = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-7 if cut else 2.0**-8, torch.float16: 2.0**-11}
    # float16 has nothing below 2^-24 apart.
    torch.testing.assert_close(own.double(), wanted, rtol=1.01 * steps[own.dtype], atol=2.0**-25)


@pytest.mark.parametrize("floats", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(8, 64), (3, 100), (1, 1), (2, 5000)])
def test_values(device, impl, floats, dtype, shape):
    weight = made(device, shape, floats=floats)
    out = torch.full((shape[0], shape[1] + 5), float("nan"), device=device, dtype=dtype)
    dequantize(weight, out[:, : shape[1]], impl=impl)
    require_rounded(out[:, : shape[1]], values(weight), impl)
    assert out[:, shape[1] :].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shape", "blocks"), [((8, 64), (4, 32)), ((7, 100), (4, 48)), ((2, 5000), (128, 128))])
def test_scales_of_blocks(device, impl, shape, blocks, dtype):
    grid = [-(-width // side) for width, side in zip(shape, blocks, strict=True)]
    scale = torch.rand(grid, generator=torch.Generator().manual_seed(1)).to(device) + 0.1
    weight = replace(made(device, shape, floats=True), scale=scale, blocks=blocks)
    out = torch.full((shape[0], shape[1] + 8), float("nan"), device=device, dtype=dtype)
    B = torch.randn(shape[0], 3, device=device)  # noqa: N806
    dequantize(weight, out, B=B, start=2, impl=impl)
    row, column = (torch.arange(width, device=device) // side for width, side in zip(shape, blocks, strict=True))
    wanted = weight.as_floats().double() * scale.double()[row[:, None], column[None, :]]
    require_rounded(out[:, : shape[1]], wanted, impl)
    require_rounded(out[:, shape[1] + 2 : shape[1] + 5], B.double(), impl)


def test_every_float_of_8_bits(device, impl):
    codes = torch.arange(256, dtype=torch.uint8, device=device)[None]
    out = torch.empty(1, 256, device=device)
    dequantize(RowScaled(codes, torch.ones(1, device=device), torch.float32), out, impl=impl)
    wanted = codes.view(torch.float8_e4m3fn).float()
    assert wanted.isnan().sum() == 2
    torch.testing.assert_close(out, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("start", [0, 3, 11])
@pytest.mark.parametrize("strided", [False, True])
def test_columns_of_a_factor(device, impl, start, strided):
    weight = made(device, (6, 128), floats=True)
    B = torch.randn(5, 6, device=device).t() if strided else torch.randn(6, 5, device=device)  # noqa: N806
    out = torch.full((6, 128 + 16), float("nan"), device=device)
    dequantize(weight, out, B=B, start=start, impl=impl)
    require_rounded(out[:, :128], values(weight), impl)
    columns = torch.zeros(6, 16, device=device)
    columns[:, start : start + 5] = B
    assert torch.equal(out[:, 128:], columns)
    dequantize(weight, out, impl=impl)
    assert not out[:, 128:].any()


def test_rows_of_a_larger_memory(device, impl):
    whole = made(device, (8, 64), floats=True)
    part = RowScaled(whole.codes[2:5], whole.scale[2:5], whole.dtype)
    out = torch.empty(3, 64, device=device)
    dequantize(part, out, impl=impl)
    require_rounded(out, values(whole)[2:5], impl)


def test_no_rows(device, impl):
    out = torch.empty(0, 64, device=device)
    dequantize(made(device, (0, 64), floats=True), out, impl=impl)


def test_a_weight_is_within_half_a_step_of_itself(device):
    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(0)).to(device)
    eight = quantize(weight)
    out = torch.empty_like(weight)
    dequantize(eight, out)
    assert eight.floats and eight.scale.shape == (16,)
    # Half of the last of 4 binary digits; below the smallest normal value half of its step.
    allowed = torch.maximum(weight.abs() * 2.0**-4, eight.scale[:, None] * 2.0**-10)
    assert ((out - weight).abs() <= 1.001 * allowed).all()
    # A row's largest value is 448 of its scales: two roundings of float32.
    torch.testing.assert_close(out.abs().amax(1), weight.abs().amax(1), rtol=2.0**-23, atol=0)


def test_what_is_none():
    assert row_scaled_of(torch.nn.Linear(4, 4)) is None
    assert row_scaled_of(torch.nn.LayerNorm(4)) is None
    assert row_scaled_of(torch.nn.ReLU()) is None


def test_whole_numbers_of_bitsandbytes_before_and_after_a_forward(device):
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="the judge of such weights is not installed")
    weight = torch.randn(24, 64, generator=torch.Generator().manual_seed(0))
    module = bitsandbytes.nn.Linear8bitLt(64, 24, bias=False, has_fp16_weights=False)
    module.weight = bitsandbytes.nn.Int8Params(weight.half(), requires_grad=False, has_fp16_weights=False)
    module = module.to(device)
    for _ in range(2):
        stored = row_scaled_of(module)
        assert stored is not None and not stored.floats
        out = torch.empty(24, 64, device=device)
        dequantize(stored, out)
        absmax = module.weight.SCB if module.weight.SCB is not None else module.state.SCB
        theirs = bitsandbytes.functional.int8_vectorwise_dequant(stored.codes, absmax)
        torch.testing.assert_close(out, theirs.to(out), rtol=2.0**-22, atol=0)
        module(torch.randn(2, 64, device=device, dtype=torch.float16 if device == "cuda" else torch.float32))
