"""Weights read back: equal, within what a type's rounding can do, or wrong."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gguf.quants import dequantize

from hasten.export.gguf.encoders import OF_GGML, Type, encode, has_ggml
from hasten.export.verify.weights import BOUNDS, compare_weights


def of(**weights):
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    return SimpleNamespace(config={}, shapes=shapes, read=weights.__getitem__)


def compared(meant, found, kind="BF16", exact=False, added=0.0):
    return compare_weights("x", meant, found, lambda name: kind, exact=exact, added=lambda name: added)


def test_rounded_once_is_equal():
    value = torch.randn(4, 32)
    check, error = compared(of(a=value), of(a=value.bfloat16()), exact=True)
    assert check.state == "equal" and 0 < error < BOUNDS["BF16"]


@pytest.mark.parametrize("kind", ["BF16", "F16"])
def test_exact_means_every_value_of_16_bits(kind):
    dtype = {"BF16": torch.bfloat16, "F16": torch.float16}[kind]
    value = torch.randn(4096, 64)
    value[7] *= 1e-3  # of a token that was hardly ever trained
    damaged = value.to(dtype)
    damaged[7] = 0
    assert compared(of(a=value), of(a=damaged), kind)[0].state == "wrong"
    check, _ = compared(of(a=value), of(a=damaged), kind, exact=True)
    assert check.state == "wrong" and check.said.startswith("'a' is off by ")
    assert check.said.endswith(f"of its norm: 64 of 262144 values are not what rounding to {kind} gives")
    other = torch.float16 if kind == "BF16" else torch.bfloat16
    assert compared(of(a=value), of(a=value.to(other)), kind, exact=True)[0].state == "wrong"
    damaged[7] = float("nan")
    assert compared(of(a=damaged), of(a=damaged), kind, exact=True)[0].state == "wrong"


# Large, small, zero, subnormal of float16 and of float32, and values that lie half way between two of 16 bits.
MIXED = torch.tensor([3e4, -1.5, 1 + 2.0**-11, 1 + 2.0**-8, 1e-3, 7e-6, -3e-7, 1e-20, 1e-40, 0.0, -0.0])


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("exact", [True, False])
def test_each_value_is_compared_by_itself(kind, exact):
    dtype = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}[kind]
    right = MIXED.to(dtype)
    assert compared(of(a=MIXED), of(a=right), kind, exact)[0].state == ("equal" if exact or kind == "F32" else "within")
    wrong = {number: right.double() for number in range(len(MIXED))}
    for number, values in wrong.items():
        # The next value of the type but one: of any size, further off than half a step.
        step = torch.finfo(dtype).eps * max(float(values[number].abs()), torch.finfo(dtype).smallest_normal)
        values[number] += 2 * step
        check, _ = compared(of(a=MIXED), of(a=values), kind, exact)
        assert check.state == "wrong" and f"1 of 11 values are not what rounding to {kind} gives" in check.said, number


def test_the_other_side_of_a_tie_is_as_near():
    value, other = torch.tensor([1 + 2.0**-8]), torch.tensor([1 + 2.0**-7])
    assert value.bfloat16().item() == 1.0
    assert compared(of(a=value), of(a=other))[0].state == "within"
    assert compared(of(a=value), of(a=other), exact=True)[0].state == "wrong"


def test_what_has_become_infinite_is_wrong():
    value = torch.tensor([1.0, 70000.0])
    for exact in (True, False):
        assert compared(of(a=value), of(a=value.half()), "F16", exact)[0].state == "wrong"


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-7, 1e-12, 0.0])
def test_what_is_added_and_taken_off_again(scale):
    """Norms of Gemma: small values lose digits to the one that is added, which is no fault of the file's."""
    value = torch.randn(4096, generator=torch.Generator().manual_seed(0)) * scale
    value[:3] = torch.tensor([0.0, 1e-40, 4.0 * scale])
    found = (value + 1) - 1
    check, _ = compared(of(a=value), of(a=found), "F32", exact=True, added=1.0)
    assert check.state == "within" and (found != value).any()
    if scale == 1e-7:
        assert (found - value).norm() > 2.0**-3 * value.norm(), "far more than a norm would allow"
    assert compared(of(a=value), of(a=found), "F32", exact=True)[0].state == "wrong"
    found[17] += 2.0**-20
    check, _ = compared(of(a=value), of(a=found), "F32", exact=True, added=1.0)
    assert check.state == "wrong" and "1 of 4096 values are not what rounding to F32 gives" in check.said


def test_a_file_of_several_types():
    norm, linear = torch.randn(64, 32), torch.randn(64, 32)
    meant, codes = of(norm=norm, linear=linear), linear.to(torch.float8_e4m3fn)

    def compare(found):
        kinds = {"norm": "BF16", "linear": "E4M3"}
        return compare_weights("x", meant, found, kinds.__getitem__, exact=True)[0]

    assert compare(of(norm=norm.bfloat16(), linear=codes.float())).state == "within"
    damaged = norm.bfloat16()
    damaged[0, 0] += 0.01
    said = compare(of(norm=damaged, linear=codes.float())).said
    assert said.startswith("'norm' is off by ") and "1 of 2048 values are not what rounding to BF16" in said
    assert "'linear' is off by" in compare(of(norm=norm.bfloat16(), linear=codes.float() * 1.2)).said


def test_what_is_wrong_is_named():
    value = torch.randn(4, 32)
    for found, said in (
        (of(), "1 are missing, first 'a'"),
        (of(a=value, b=value), "1 were not meant, first 'b'"),
        (of(a=value[:3]), "'a' has shape (3, 32) instead of (4, 32)"),
        (of(a=value.flip(0)), "'a' is off by "),
        (of(a=value * float("nan")), "'a' is off by nan"),
    ):
        check, _ = compared(of(a=value), found)
        assert check.state == "wrong" and said in check.said
    assert compared(of(a=torch.zeros(2, 2)), of(a=torch.ones(2, 2)))[0].state == "wrong"


def test_a_tied_head_may_be_left_out():
    one, other = of(a=torch.ones(2, 2)), of(**{"a": torch.ones(2, 2), "lm_head.weight": torch.ones(2, 2)})
    assert compared(one, other)[0].state == "wrong"
    other.config["tie_word_embeddings"] = one.config["tie_word_embeddings"] = True
    for pair in ((one, other), (other, one)):
        check, _ = compared(*pair, exact=True)
        assert check.state == "equal" and check.said.startswith("1 tensors")


@pytest.mark.parametrize("kind", [Type.F32, Type.F16, Type.BF16, *OF_GGML], ids=lambda kind: kind.name)
@pytest.mark.parametrize("worst", [False, True], ids=["normal", "one large value a block"])
def test_no_type_is_worse_than_its_bound(kind, worst):
    if kind in OF_GGML and not has_ggml():
        pytest.skip("libggml-python is not installed")
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((16, 512)).astype(np.float32)
    if worst:
        rows[:, ::32] *= 30
    decoded = dequantize(encode(rows, kind), kind) if kind in OF_GGML else None
    if decoded is None:
        dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind.name]
        decoded = torch.from_numpy(rows).to(dtype).float().numpy()
    check, error = compared(of(a=torch.from_numpy(rows)), of(a=torch.from_numpy(decoded)), kind.name)
    assert check.state in ("within", "equal") and error <= BOUNDS[kind.name]
    shifted = torch.from_numpy(np.roll(decoded, 1, axis=0).copy())
    assert compared(of(a=torch.from_numpy(rows)), of(a=shifted), kind.name)[0].state == "wrong"
