"""Scales that fit the inputs."""

import torch

from hasten.quant import nf4, scales


def lost(weight, made, counts):
    return ((made.values() - weight).square() * counts).sum().item()


def test_they_lose_less_than_the_largest_magnitude():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(32, 256, generator=generator)
    counts = torch.rand(256, generator=generator) ** 4
    fitted = scales.rounded(weight, scales.fitted(weight, counts))
    assert lost(weight, fitted, counts) < 0.85 * lost(weight, nf4.plain(weight), counts)


def test_an_input_that_counts_alone_is_hit():
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(2))
    counts = torch.zeros(64)
    counts[7] = 1.0
    fitted = scales.rounded(weight, scales.fitted(weight, counts))
    plain = nf4.plain(weight)
    assert (fitted.values() - weight)[:, 7].abs().mean() < 0.4 * (plain.values() - weight)[:, 7].abs().mean()


def test_a_factor_of_one_alone_gives_the_largest_magnitude():
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(3))
    made = scales.fitted(weight, torch.ones(128), factors=(1.0,))
    assert torch.equal(made.codes, nf4.stored_scales(nf4.largest(weight)).codes)
