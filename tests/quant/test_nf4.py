"""The format: equal to bitsandbytes' own, bit by bit."""

import bitsandbytes.functional as bnb
import pytest
import torch

from hasten.quant import nf4


def weight(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.05


@pytest.mark.parametrize("shape", [(1, 64), (3, 128), (48, 192), (130, 576)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_rounding_is_bitsandbytes(shape, dtype):
    original = weight(*shape).to(dtype)
    packed, state = bnb.quantize_4bit(original, blocksize=64, compress_statistics=True, quant_type="nf4")
    made = nf4.plain(original)
    assert torch.equal(made.packed(), packed)
    ours = made.state(dtype)
    assert torch.equal(ours.absmax, state.absmax) and torch.equal(ours.state2.absmax, state.state2.absmax)
    assert torch.equal(ours.offset, state.offset) and torch.equal(ours.code, state.code)
    assert torch.equal(ours.state2.code, state.state2.code)
    assert ours.as_dict(packed=True).keys() == state.as_dict(packed=True).keys()
    for key, value in state.as_dict(packed=True).items():
        assert torch.equal(ours.as_dict(packed=True)[key], value), key


def test_small_blocks_too():
    original = weight(48, 192)
    packed, state = bnb.quantize_4bit(original, blocksize=32, compress_statistics=True, quant_type="nf4")
    made = nf4.plain(original, nf4.SMALL_BLOCK)
    assert made.block == 32 and torch.equal(made.packed(), packed)
    ours = made.state(torch.float32)
    for key, value in state.as_dict(packed=True).items():
        assert torch.equal(ours.as_dict(packed=True)[key], value), key
    tensors = [value for name, value in state.as_dict(packed=True).items() if "bitsandbytes__" not in name]
    assert nf4.stored_bytes((48, 192), 32) == packed.nbytes + sum(value.nbytes for value in tensors)


def test_values_are_what_bitsandbytes_reads():
    made = nf4.plain(weight(48, 192))
    read = bnb.dequantize_4bit(made.packed(), made.state(torch.float32))
    torch.testing.assert_close(made.values(), read, rtol=0, atol=0)


def test_a_block_of_zeros():
    original = torch.zeros(2, 128)
    original[1, 70] = 1.0
    values = nf4.plain(original).values()
    assert values.isfinite().all() and values[0].abs().max() < 0.01
    assert values[1, 70] == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize("shape", [(1, 64), (48, 192), (300, 576)])
def test_bytes_are_those_of_the_tensors(shape):
    packed, state = bnb.quantize_4bit(weight(*shape), blocksize=64, compress_statistics=True, quant_type="nf4")
    tensors = {name: value for name, value in state.as_dict(packed=True).items() if "bitsandbytes__" not in name}
    assert nf4.stored_bytes(shape) == packed.nbytes + sum(value.nbytes for value in tensors.values())


def test_which_shapes_fit():
    assert nf4.fits((5, 128))
    assert not nf4.fits((64, 100)) and not nf4.fits((64,))


def test_on_another_device_it_is_the_same():
    made = nf4.plain(weight(3, 128))
    moved = made.to("meta")
    assert moved.codes_NK.is_meta and moved.scales.codes.is_meta and moved.scales.state.absmax.is_meta
    assert not made.scales.state.absmax.is_meta and torch.equal(made.to("cpu").values(), made.values())
