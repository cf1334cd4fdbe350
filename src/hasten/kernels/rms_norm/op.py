"""rms_norm as an operator of torch: one node for autograd and for `torch.compile`."""

from __future__ import annotations

from typing import Any

import torch

from hasten.kernels.choice import Impl, accumulation_dtype, choose
from hasten.kernels.fp8 import reference as fp8
from hasten.kernels.rms_norm import reference
from hasten.kernels.rows import flat_rows


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float = 1e-6,
    *,
    plus_one: bool = False,
    residual: torch.Tensor | None = None,
    impl: Impl = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Normalise rows to root mean square 1, times a weight.

    ``h = x + residual;  y = h / sqrt(mean(h²) + eps) · w``, w + 1 where `plus_one`.

    Shapes: `x` and `residual` ``[..., D]``, `weight` ``[D]``.
    Dtypes: float32, bfloat16, float16, any weight dtype; sums in float32; output as `x`.
    Saves for backward: h (the residual stream's own tensor) and 4 bytes per row.
    Cost: about 5 FLOP per value; bytes moved in README.md.
    Source: Zhang & Sennrich 2019; written from the formula, no code reused.
    Numerics: one rounding; transformers' module rounds twice.

    Args:
        x: rows.
        weight: scale per column.
        eps: added to the mean square.
        plus_one: the stored weight is the scale minus one (Gemma).
        residual: added to `x` first; the sum is returned too.
        impl: ``torch``, ``triton``, or ``auto``: Triton on a GPU.

    Returns:
        `y`, or ``(y, h)`` where a residual is given.

    Raises:
        CapabilityError: Triton was asked for and cannot run here.
    """
    rows, others = flat_rows(x), None if residual is None else flat_rows(residual)
    y, h, _ = _rms_norm(rows, others, weight.contiguous(), eps, plus_one, impl)
    return y.view(x.shape) if residual is None else (y.view(x.shape), h.view(x.shape))


def forward(
    x: torch.Tensor,
    weight_D: torch.Tensor,
    eps: float,
    plus_one: bool,
    *,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    eight: tuple[torch.Tensor, torch.Tensor] | None = None,
    impl: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Without autograd, for blocks: ``y, rstd, h``.

    Args:
        x: ``[R, D]`` or ``[R, H, D]``; the last dimension contiguous.
        weight_D: scale per column.
        eps: added to the mean square.
        plus_one: the scale is the weight plus one.
        residual: added first, shaped as `x`.
        out: where y goes; any row strides.
        eight: where y goes in 8 bits, ``[R, D]`` and ``[R, 1]`` from `hasten.kernels.fp8.op.new_rows`; x is ``[R, D]``.
        impl: see `rms_norm`.
    """
    if choose(impl, x) == "triton":
        from hasten.kernels.rms_norm import triton as kernels

        return kernels.rms_norm_fwd(x, weight_D, eps, plus_one, residual, out, eight)
    y, rstd, h = reference.rms_norm_fwd(x, weight_D, eps, plus_one, residual, out)
    if eight is not None:
        fp8.quantize_rows(y, None, *eight)
    return y, rstd, h


def backward(
    dy: torch.Tensor,
    h: torch.Tensor,
    rstd: torch.Tensor,
    weight_D: torch.Tensor,
    plus_one: bool,
    *,
    dresidual: torch.Tensor | None = None,
    need_dw: bool = False,
    impl: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Without autograd, for blocks: ``dh`` and ``dw`` (accumulation dtype) or None.

    Args:
        dy: gradient of y, shaped as `h`; any row strides.
        h: what was normalised.
        rstd: from `forward`.
        weight_D: scale per column.
        plus_one: as in `forward`.
        dresidual: gradient that reaches `h` otherwise; added to dh.
        need_dw: whether the weight is trained.
        impl: see `rms_norm`.
    """
    if choose(impl, h) == "triton":
        from hasten.kernels.rms_norm import triton as kernels

        return kernels.rms_norm_bwd(dy, h, rstd, weight_D, plus_one, dresidual, need_dw)
    return reference.rms_norm_bwd(dy, h, rstd, weight_D, plus_one, dresidual, need_dw)


@torch.library.custom_op("hasten::rms_norm", mutates_args=())
def _rms_norm(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float, plus_one: bool, impl: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    y, rstd, h = forward(x, weight, eps, plus_one, residual=residual, impl=impl)
    return y, (x.new_empty(0) if residual is None else h), rstd  # an operator must not return its input


@_rms_norm.register_fake
def _(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float, plus_one: bool, impl: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    h = x.new_empty(0) if residual is None else torch.empty_like(x)
    return torch.empty_like(x), h, x.new_empty(x.shape[:-1], dtype=accumulation_dtype(x.dtype))


@torch.library.custom_op("hasten::rms_norm_backward", mutates_args=())
def _rms_norm_backward(
    dy: torch.Tensor,
    h: torch.Tensor,
    rstd: torch.Tensor,
    weight: torch.Tensor,
    dresidual: torch.Tensor | None,
    plus_one: bool,
    need_dw: bool,
    impl: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    dh, dw = backward(dy, h, rstd, weight, plus_one, dresidual=dresidual, need_dw=need_dw, impl=impl)
    return dh, (h.new_empty(0) if dw is None else dw.to(weight.dtype))


@_rms_norm_backward.register_fake
def _(
    dy: torch.Tensor,
    h: torch.Tensor,
    rstd: torch.Tensor,
    weight: torch.Tensor,
    dresidual: torch.Tensor | None,
    plus_one: bool,
    need_dw: bool,
    impl: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(h), (torch.empty_like(weight) if need_dw else h.new_empty(0))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    x, residual, weight, _, ctx.plus_one, ctx.impl = inputs
    _, h, rstd = output
    ctx.has_residual = residual is not None
    ctx.save_for_backward(h if ctx.has_residual else x, rstd, weight)


def _autograd(ctx: Any, dy: torch.Tensor, dresidual: torch.Tensor, drstd: torch.Tensor) -> tuple[Any, ...]:
    h, rstd, weight = ctx.saved_tensors
    need_dw = ctx.needs_input_grad[2]
    arriving = dresidual.contiguous() if ctx.has_residual else None
    dh, dw = _rms_norm_backward(dy.contiguous(), h, rstd, weight, arriving, ctx.plus_one, need_dw, ctx.impl)
    return dh, (dh if ctx.has_residual else None), (dw if need_dw else None), None, None, None


_rms_norm.register_autograd(_autograd, setup_context=_setup)
