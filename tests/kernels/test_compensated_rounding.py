"""Rounding with compensation: torch's codes and errors from either implementation."""

import pytest
import torch

from hasten.kernels.compensated_rounding.op import round_group
from hasten.kernels.compensated_rounding.reference import nearest

LEVELS = torch.linspace(-1, 1, 16) ** 3
BORDERS = (LEVELS[:-1] + LEVELS[1:]) / 2


def made(device, rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    free, scales = torch.randn(rows, columns, generator=generator), torch.rand(rows, columns, generator=generator) + 1
    upper = torch.eye(columns) + 0.1 * torch.randn(columns, columns, generator=generator).triu()
    return [part.to(device) for part in (free, scales, upper, LEVELS, BORDERS)]


def run(parts, impl, dtype=torch.float32):
    free = parts[0]
    codes = torch.full(free.shape, 99, dtype=torch.uint8, device=free.device)
    errors = torch.full(free.shape, float("nan"), device=free.device, dtype=dtype)
    round_group(*(part.to(dtype) for part in parts), codes, errors, impl=impl)
    return codes, errors


@pytest.mark.parametrize(
    "shape",
    [(1, 1), (5, 16), (17, 19), *(pytest.param(large, marks=pytest.mark.slow) for large in [(33, 100), (16, 128)])],
)
def test_against_float64(device, impl, shape):
    parts = made(device, *shape)
    codes, errors = run(parts, impl)
    wanted_codes, wanted = run(parts, "torch", torch.float64)
    assert torch.equal(codes, wanted_codes)
    torch.testing.assert_close(errors.double(), wanted, rtol=1e-4, atol=1e-5)


def test_without_correlations_it_is_the_nearest_level(device, impl):
    parts = made(device, 7, 6)
    parts[2] = torch.eye(6, device=device)
    codes, errors = run(parts, impl)
    assert torch.equal(codes, nearest(parts[0], parts[1], parts[4]))
    assert torch.equal(errors, parts[0] - parts[3][codes.long()] * parts[1])


def test_views_are_read_and_written(device, impl):
    parts = made(device, 3, 9)
    wide = [torch.zeros(3, 14, device=device) for _ in range(2)]
    for target, part in zip(wide, parts[:2], strict=True):
        target[:, 2:11] = part
    upper = torch.zeros(11, 11, device=device)
    upper[2:, 2:] = parts[2]
    codes = torch.full((3, 14), 99, dtype=torch.uint8, device=device)
    errors = torch.full((3, 14), float("nan"), device=device)
    round_group(
        wide[0][:, 2:11], wide[1][:, 2:11], upper[2:, 2:], *parts[3:], codes[:, 2:11], errors[:, 2:11], impl=impl
    )
    wanted_codes, wanted = run(parts, impl)
    assert torch.equal(codes[:, 2:11], wanted_codes) and (codes[:, :2] == 99).all() and (codes[:, 11:] == 99).all()
    assert torch.equal(errors[:, 2:11], wanted) and errors[:, :2].isnan().all() and errors[:, 11:].isnan().all()
    assert torch.equal(wide[0][:, 2:11], parts[0])


def test_a_triangle_stored_by_columns(device, impl):
    parts = made(device, 5, 9)
    wanted_codes, wanted = run(parts, impl)
    parts[2] = parts[2].T.contiguous().T
    codes, errors = run(parts, impl)
    assert torch.equal(codes, wanted_codes)
    torch.testing.assert_close(errors, wanted, rtol=1e-4, atol=1e-5)  # torch's sums depend on the strides


def test_nothing_to_round(device, impl):
    parts = made(device, 0, 8)
    codes, errors = run(parts, impl)
    assert codes.shape == errors.shape == (0, 8)
