"""The promise of every kernel: its error against float64 is at most 1.2 times that of plain torch at the same dtype."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

SLACK = 1.2
# Where torch itself is exact or nearly so, one rounding of the result is what any implementation may differ by.
ROUNDING = {torch.float64: 2.0**-52, torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
# Triton's interpreter cuts float32 off to bfloat16 instead of rounding: twice the error. GPUs round.
if not torch.cuda.is_available():
    ROUNDING[torch.bfloat16] = 2.0**-7


def enough(shape: Sequence[int]) -> int:
    """How many sets of inputs of a shape make the pooled error no luck: together they have about a hundred values."""
    values = math.prod(shape)
    return math.ceil(96 / values) if 0 < values < 64 else 1


def gradients_of(
    function: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]],
    inputs: Sequence[torch.Tensor | None],
    seed: int = 0,
) -> list[torch.Tensor]:
    """Outputs and the gradients of all floating inputs, for one random gradient of the outputs."""
    leaves = [part.detach().clone().requires_grad_() if _floats(part) else part for part in inputs]
    out = function(*leaves)
    outputs = [out] if isinstance(out, torch.Tensor) else list(out)
    generator = torch.Generator().manual_seed(seed)
    upstream = [torch.randn(part.shape, generator=generator).to(part) for part in outputs]
    learnt = [leaf for leaf in leaves if _floats(leaf)]
    return [*outputs, *torch.autograd.grad(outputs, learnt, upstream)]


def require_promise(
    ours: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]],
    plain: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]],
    *draws: Sequence[torch.Tensor | None],
    terms: int = 1,
) -> None:
    """Compare `ours` and `plain` torch, at the inputs' dtype, with `plain` in float64; outputs and every gradient.

    Args:
        ours: the implementation under test.
        plain: the same in plain torch, at any dtype.
        *draws: inputs, several sets of them where one holds few values: the errors of all sets are pooled, since the
            error of a handful of roundings is luck.
        terms: how many terms a result is a sum of; libraries add them in any order, whose roundings in float32 grow as
            the square root.

    Raises:
        AssertionError: naming the output or gradient whose error is too large.
    """
    pooled: dict[int, list[float]] = {}
    for inputs in draws:
        wide = [part.double() if _floats(part) else part for part in inputs]
        results = gradients_of(plain, wide), gradients_of(ours, inputs), gradients_of(plain, inputs)
        for place, (truth, own, theirs) in enumerate(zip(*results, strict=True)):
            assert own.shape == theirs.shape
            assert own.dtype == theirs.dtype
            sums = pooled.setdefault(place, [0.0, 0.0, 0.0])
            sums[0] += _square(own.detach().double() - truth)
            sums[1] += _square(theirs.detach().double() - truth)
            sums[2] += _square((ROUNDING[own.dtype] + (terms - 1) ** 0.5 * 2.0**-24) * truth)
    for place, (error, allowed, floor) in pooled.items():
        assert error <= max(SLACK**2 * allowed, floor), (
            f"result {place}: error {error**0.5:.3e}, torch's {allowed**0.5:.3e}, one rounding {floor**0.5:.3e}"
        )


def _square(part: torch.Tensor) -> float:
    return float(part.detach().square().sum())


def _floats(part: torch.Tensor | None) -> bool:
    return isinstance(part, torch.Tensor) and part.is_floating_point()
