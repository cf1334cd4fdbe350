"""4-bit weights come back as bitsandbytes gives them, bit by bit."""

import pytest
import torch

from hasten.kernels.nf4.op import dequantize
from hasten.kernels.nf4.packed import packed_of

bitsandbytes = pytest.importorskip("bitsandbytes", reason="the judge of 4-bit weights is not installed")


def quantized(device, shape, *, nested, blocksize=64, dtype=torch.float32, seed=0):
    """A parameter of bitsandbytes and what bitsandbytes makes of it again."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)
    parameter = bitsandbytes.nn.Params4bit(
        weight, requires_grad=False, blocksize=blocksize, compress_statistics=nested, quant_type="nf4"
    ).to(device)
    if parameter.quant_state is None:
        parameter = parameter._quantize(device)
    return parameter, bitsandbytes.functional.dequantize_4bit(parameter.data, parameter.quant_state)


def require_equal(own, wanted, impl):
    """Bit by bit; Triton's interpreter cuts float32 off to bfloat16 instead of rounding it."""
    if impl == "triton" and own.dtype == torch.bfloat16 and not own.is_cuda:
        torch.testing.assert_close(own, wanted, rtol=2.0**-7, atol=0)
    else:
        assert torch.equal(own, wanted)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("shape", "blocksize"), [((8, 64), 64), ((3, 192), 64), ((5, 130), 64), ((40, 512), 128)])
def test_bit_by_bit(device, impl, nested, dtype, shape, blocksize):
    parameter, wanted = quantized(device, shape, nested=nested, blocksize=blocksize, dtype=dtype)
    out = torch.full((shape[0], shape[1] + 7), float("nan"), device=device, dtype=dtype)
    dequantize(packed_of(parameter), out[:, : shape[1]], impl=impl)
    require_equal(out[:, : shape[1]], wanted, impl)
    assert out[:, shape[1] :].isnan().all()


@pytest.mark.parametrize("shape", [(8, 160), (64, 96)])
def test_blocks_go_on_from_row_to_row(device, impl, shape):
    """bitsandbytes 0.50 reads such weights wrongly on CPUs: here the judge is the weight itself."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    parameter = bitsandbytes.nn.Params4bit(weight.clone(), requires_grad=False, quant_type="nf4").to(device)
    out = torch.empty(shape, device=device)
    dequantize(packed_of(parameter), out, impl=impl)
    assert (out - weight).norm() < 0.12 * weight.norm()  # NF4 loses 9 % of normal values; a wrong scale 22 %


@pytest.mark.parametrize("start", [0, 3, 11])
@pytest.mark.parametrize("strided", [False, True])
def test_columns_of_a_factor(device, impl, start, strided):
    parameter, wanted = quantized(device, (6, 128), nested=True, dtype=torch.bfloat16)
    B = torch.randn(5, 6, device=device).t() if strided else torch.randn(6, 5, device=device)  # noqa: N806
    out = torch.full((6, 128 + 16), float("nan"), device=device, dtype=torch.bfloat16)
    dequantize(packed_of(parameter), out, B=B, start=start, impl=impl)
    require_equal(out[:, :128], wanted, impl)
    columns = torch.zeros(6, 16, device=device, dtype=torch.bfloat16)
    columns[:, start : start + 5] = B.to(torch.bfloat16)
    require_equal(out[:, 128:], columns, impl)
    dequantize(packed_of(parameter), out, impl=impl)
    assert not out[:, 128:].any()


def test_a_stored_block_gives_the_same_floats_for_ever(device, impl):
    """The codes and the scale of one block, and what they mean (pains 1.6)."""
    from hasten.kernels.nf4.packed import Packed

    levels = bitsandbytes.functional.get_4bit_type("nf4", device=device)
    codes = torch.tensor([0x01, 0x23, 0x45, 0x67, 0x89, 0xAB, 0xCD, 0xEF] * 4, dtype=torch.uint8, device=device)
    packed = Packed(codes, torch.tensor([2.0], device=device), levels, (1, 64), 64, torch.float32, None)
    out = torch.empty(1, 64, device=device)
    dequantize(packed, out, impl=impl)
    known = [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]  # fmt: skip
    assert out[0].tolist() == [2 * level for level in known] * 4


def test_other_parameters_are_not_packed():
    assert packed_of(torch.nn.Parameter(torch.ones(2, 2))) is None
    fp4 = bitsandbytes.nn.Params4bit(torch.randn(4, 64), requires_grad=False, quant_type="fp4").to("cpu")
    assert packed_of(fp4) is None
