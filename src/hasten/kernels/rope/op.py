"""rope as an operator of torch: one node for autograd and for `torch.compile`."""

from __future__ import annotations

from typing import Any

import torch

from hasten.kernels.choice import Impl, choose
from hasten.kernels.rope import reference


def rope(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    interleaved: bool = False,
    impl: Impl = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn query and key heads by their positions' angles.

    ``y1 = x1 cos - x2 sin;  y2 = x2 cos + x1 sin`` for each pair of columns.

    Shapes: `q` ``[B, T, H, D]``, `k` ``[B, T, K, D]``, `cos` and `sin` ``[B or 1, T, R]``, R even and at most D.
    Dtypes: float32, bfloat16, float16; tables in any; float32 inside; output as input.
    Saves for backward: the tables.
    Cost: 3 FLOP per value, one read and one write.
    Source: Su et al. 2021; written from the formula, no code reused.
    Numerics: one rounding; transformers rounds three times.

    Args:
        q: queries; copied where batch and position are not one stride, or columns no neighbours in memory.
        k: keys, likewise.
        cos: cosines, size factors included; the first R / 2 columns are read.
        sin: sines, likewise.
        interleaved: pairs are neighbours (2i, 2i + 1) instead of (i, i + R / 2).
        impl: ``torch``, ``triton``, or ``auto``: Triton on a GPU.

    Returns:
        Both turned, as new tensors.

    Raises:
        CapabilityError: Triton was asked for and cannot run here.
    """
    cos_CR, sin_CR = (_packed(table).reshape(-1, table.shape[-1]) for table in (cos, sin))
    rows = (_packed(part).flatten(0, 1) for part in (q, k))
    turned = (_rope(part, cos_CR, sin_CR, False, interleaved, impl) for part in rows)
    return next(turned).view(q.shape), next(turned).view(k.shape)


def _packed(x: torch.Tensor) -> torch.Tensor:
    """Copied only where the kernel could not read it: it takes columns to be neighbours in memory."""
    return x if x.stride(-1) == 1 else x.contiguous()


def rotate(
    x_MHD: torch.Tensor,
    cos_CR: torch.Tensor,
    sin_CR: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
    backward: bool = False,
    interleaved: bool = False,
    impl: str = "auto",
) -> torch.Tensor:
    """Without autograd, for blocks.

    Args:
        x_MHD: rows of heads; any outer strides, the last dimension contiguous.
        cos_CR: angles; row m uses row m % C; the last dimension contiguous.
        sin_CR: likewise.
        out: where the result goes: `x_MHD` itself (in place), another tensor, or None for a new one.
        backward: turn back.
        interleaved: see `rope`.
        impl: see `rope`.
    """
    target = torch.empty(x_MHD.shape, dtype=x_MHD.dtype, device=x_MHD.device) if out is None else out
    if choose(impl, x_MHD) == "triton":
        from hasten.kernels.rope import triton as kernels

        return kernels.rotate(x_MHD, cos_CR, sin_CR, target, backward, interleaved)
    return reference.rotate(x_MHD, cos_CR, sin_CR, target, backward, interleaved)


def join(
    dq_MHD: torch.Tensor,
    dk_MKD: torch.Tensor,
    dv_MKD: torch.Tensor,
    cos_CR: torch.Tensor,
    sin_CR: torch.Tensor,
    *,
    out: torch.Tensor,
    interleaved: bool = False,
    impl: str = "auto",
) -> None:
    """For a block's backward: the gradients of q and k turned back, and that of v, side by side in one buffer.

    Args:
        dq_MHD: any outer strides, the last dimension contiguous.
        dk_MKD: likewise.
        dv_MKD: likewise.
        cos_CR: as in `rotate`.
        sin_CR: likewise.
        out: ``[M, (H + 2 K) D]``, any row stride.
        interleaved: see `rope`.
        impl: see `rope`.
    """
    if choose(impl, dq_MHD) == "triton":
        from hasten.kernels.rope import triton as kernels

        kernels.join(dq_MHD, dk_MKD, dv_MKD, cos_CR, sin_CR, out, interleaved)
        return
    heads, kept, width = dq_MHD.shape[1], dk_MKD.shape[1], dq_MHD.shape[2]
    parts = out.unflatten(1, (-1, width)).split([heads, kept, kept], dim=1)
    reference.rotate(dq_MHD, cos_CR, sin_CR, parts[0], True, interleaved)
    reference.rotate(dk_MKD, cos_CR, sin_CR, parts[1], True, interleaved)
    parts[2].copy_(dv_MKD)


@torch.library.custom_op("hasten::rope", mutates_args=())
def _rope(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, backward: bool, interleaved: bool, impl: str
) -> torch.Tensor:
    return rotate(x, cos, sin, backward=backward, interleaved=interleaved, impl=impl)


@_rope.register_fake
def _(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, backward: bool, interleaved: bool, impl: str
) -> torch.Tensor:
    return x.new_empty(x.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    _, cos, sin, ctx.backward_, ctx.interleaved, ctx.impl = inputs
    ctx.save_for_backward(cos, sin)


def _autograd(ctx: Any, dy: torch.Tensor) -> tuple[Any, ...]:
    cos, sin = ctx.saved_tensors
    return _rope(dy.contiguous(), cos, sin, not ctx.backward_, ctx.interleaved, ctx.impl), None, None, None, None, None


_rope.register_autograd(_autograd, setup_context=_setup)
