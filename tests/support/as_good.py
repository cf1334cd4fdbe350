"""A whole model's results against transformers' own: the promise over all values of a kind."""

from __future__ import annotations

from typing import Any

import torch

from support.promise import SLACK

# Both are float32 sums of the same terms in another order. A product's row has at most 152 terms (the widest layer and
# the widened columns), a gradient comes after 3 x 15 products (forward, and two per product in the backward), and
# random signs add up as the square root: relative to the norm of all values of a kind that is 5e-6.
ROUNDING = (3 * 15 * 152) ** 0.5 * 2.0**-24


def require_as_good(fast: dict[str, Any], plain: dict[str, Any], truth: dict[str, Any]) -> None:
    """Errors pooled by kind within the promise, and no single result grossly wrong.

    Args:
        fast: results by name (loss, logits, gradients by their parameters' names) of the fast model.
        plain: of transformers' own, at the same dtype.
        truth: of the same in float64.
    """
    assert fast.keys() == plain.keys() == truth.keys()
    for kind in ("loss", "logits", "lora_A", "lora_B", "norm", "bias", "weight", ""):
        names = [name for name in truth if name.startswith(kind) or (kind and kind in name)]
        if not names:
            continue
        errors = [sum(float((r[n].double() - truth[n]).square().sum()) for n in names) for r in (fast, plain)]
        size = sum(float(truth[n].square().sum()) for n in names)
        error, allowed = errors[0] ** 0.5, errors[1] ** 0.5
        assert error <= max(SLACK * allowed, ROUNDING * size**0.5), (kind, error, allowed, size**0.5)
    for name in truth:  # a single wrong gradient must not hide among right ones
        torch.testing.assert_close(
            fast[name].double(), truth[name].double(), rtol=1e-3, atol=1e-5 * float(truth[name].norm()) + 1e-7
        )
