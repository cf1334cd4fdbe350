"""ggml's types: encoded rows mean what they were, within what each type loses."""

import warnings

import numpy as np
import pytest
import torch
from gguf import quants

from hasten.errors import CapabilityError, MissingPackageError
from hasten.export.gguf import encoders
from hasten.export.gguf.encoders import OF_GGML, OF_GGUF, PLAIN, Type, encode, row_bytes

# Most that normal values are off by, relative norms: a wrong scale or order would be far more.
LOSES = {
    Type.F32: 1e-9, Type.F16: 4e-4, Type.BF16: 3e-3, Type.Q8_0: 0.008, Type.Q4_0: 0.11, Type.Q4_1: 0.09,
    Type.Q5_0: 0.055, Type.Q5_1: 0.045, Type.Q2_K: 0.32, Type.Q3_K: 0.17, Type.Q4_K: 0.08, Type.Q5_K: 0.04,
    Type.Q6_K: 0.022, Type.IQ4_NL: 0.085, Type.IQ4_XS: 0.085,
}  # fmt: skip


def rows(count=7, width=512, seed=0):
    return np.random.default_rng(seed).standard_normal((count, width), dtype=np.float32)


def needs_ggml(kind):
    if kind not in (*PLAIN, *OF_GGUF):
        pytest.importorskip("libggml", reason="ggml's encoders are a package of their own")


@pytest.mark.parametrize("kind", [*PLAIN, *OF_GGML], ids=lambda kind: kind.name)
def test_what_comes_back(kind, monkeypatch):
    needs_ggml(kind)
    monkeypatch.setattr(encoders, "_VALUES", 1024)  # two rows a thread
    values = rows()
    encoded = encode(values, kind)
    assert encoded.shape == (7, row_bytes(kind, 512)) and encoded.dtype == np.uint8
    back = quants.dequantize(encoded.reshape(-1), kind).reshape(values.shape)
    off = np.linalg.norm(back - values) / np.linalg.norm(values)
    assert off <= LOSES[kind]
    assert np.array_equal(encode(values[3:4], kind), encoded[3:4])  # rows know nothing of each other


@pytest.mark.parametrize("kind", OF_GGUF, ids=lambda kind: kind.name)
def test_without_ggml_the_gguf_package_encodes(kind, monkeypatch):
    monkeypatch.setattr(encoders, "_library", lambda: None)
    encoders._encoder.cache_clear()
    try:
        back = quants.dequantize(encode(rows(), kind).reshape(-1), kind).reshape(7, 512)
        with pytest.raises(MissingPackageError, match=r"Q4_K: libggml-python is not installed.*hasten\[gguf\]"):
            encode(rows(), Type.Q4_K)
        ones = np.ones(512, dtype=np.float32)
        if kind != Type.Q8_0:
            with pytest.raises(MissingPackageError, match=f"{kind.name} with an importance.*leave the"):
                encode(rows(), kind, ones)
        else:
            assert np.array_equal(encode(rows(), kind, ones), encode(rows(), kind))
    finally:
        encoders._encoder.cache_clear()
    assert np.linalg.norm(back - rows()) <= LOSES[kind] * np.linalg.norm(rows())


@pytest.mark.parametrize("kind", [Type.Q4_K, Type.Q4_0, Type.IQ4_NL], ids=lambda kind: kind.name)
def test_importance_moves_the_error_to_where_it_counts_less(kind):
    pytest.importorskip("libggml", reason="ggml's encoders are a package of their own")
    values, weights = rows(64), np.ones(512, dtype=np.float32)
    weights[::4] = 100

    def lost(importance):
        back = quants.dequantize(encode(values, kind, importance).reshape(-1), kind).reshape(values.shape)
        return float(((back - values) ** 2 * weights).sum())

    assert lost(weights) < 0.9 * lost(np.ones_like(weights))


@pytest.mark.parametrize("kind", [*PLAIN, Type.Q8_0, Type.Q4_K], ids=lambda kind: kind.name)
def test_values_of_16_bit_are_what_they_are_in_32(kind):
    needs_ggml(kind)
    values = torch.from_numpy(rows()).bfloat16()
    wide = encode(values.float(), kind)
    assert np.array_equal(encode(values, kind), wide)
    narrow = values.half()  # normal numbers of eight bits: the same in float16
    assert torch.equal(narrow.float(), values.float())
    assert np.array_equal(encode(narrow, kind), wide) and np.array_equal(encode(narrow.numpy(), kind), wide)
    from_file = narrow.numpy().copy()
    from_file.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(encode(from_file, kind), wide)


def test_each_expert_has_its_own_importance():
    pytest.importorskip("libggml", reason="ggml's encoders are a package of their own")
    experts = rows(12).reshape(3, 4, 512)
    importance = np.random.default_rng(1).lognormal(0, 2, (3, 512)).astype(np.float32)
    together = encode(experts, Type.Q4_K, importance)
    assert together.shape == (3, 4, row_bytes(Type.Q4_K, 512))
    for number in range(3):
        assert np.array_equal(together[number], encode(experts[number], Type.Q4_K, importance[number]))
    assert not np.array_equal(together, encode(experts, Type.Q4_K, importance[0]))


def test_threads_do_not_change_bytes(monkeypatch):
    needs_ggml(Type.Q4_K)
    monkeypatch.setattr(encoders, "_VALUES", 1024)
    assert np.array_equal(encode(rows(40), Type.Q4_K, threads=1), encode(rows(40), Type.Q4_K, threads=4))


def test_rows_that_are_no_whole_blocks():
    with pytest.raises(CapabilityError, match="Q4_K: rows of 576 values.*blocks of 256"):
        encode(rows(2, 576), Type.Q4_K)
    assert encode(rows(2, 576), Type.Q8_0).shape == (2, 576 // 32 * 34)


def test_no_rows():
    assert encode(np.empty((0, 256), dtype=np.float32), Type.Q8_0).shape == (0, 272)
