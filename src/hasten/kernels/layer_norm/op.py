"""layer_norm as an operator of torch: one node for autograd and for `torch.compile`."""

from __future__ import annotations

from typing import Any

import torch

from hasten.kernels.choice import Impl, accumulation_dtype, choose
from hasten.kernels.layer_norm import reference
from hasten.kernels.rows import flat_rows


def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: torch.Tensor | None = None,
    impl: Impl = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Normalise rows to mean 0 and variance 1, times a weight, plus a bias.

    ``h = x + residual;  y = (h - mean(h)) / sqrt(var(h) + eps) · w + b``, with the variance of D values, not D - 1.

    Shapes: `x` and `residual` ``[..., D]``, `weight` and `bias` ``[D]``.
    Dtypes: float32, bfloat16, float16, any weight dtype; sums in float32; output as `x`.
    Saves for backward: h (the residual stream's own tensor) and 8 bytes per row.
    Cost: about 8 FLOP per value; bytes moved in README.md. Rows whose columns are not neighbours in memory are copied.
    Source: Ba, Kiros & Hinton 2016; written from the formula, no code reused.
    Numerics: variance of centred values; one rounding, as torch.

    Args:
        x: rows.
        weight: scale per column.
        bias: shift per column, or None.
        eps: added to the variance.
        residual: added to `x` first; the sum is returned too.
        impl: ``torch``, ``triton``, or ``auto``: Triton on a GPU.

    Returns:
        `y`, or ``(y, h)`` where a residual is given.

    Raises:
        CapabilityError: Triton was asked for and cannot run here.
    """
    rows = flat_rows(x)
    added = None if residual is None else flat_rows(residual)
    shift = None if bias is None else bias.contiguous()
    y, h, _, _ = _layer_norm(rows, added, weight.contiguous(), shift, eps, impl)
    return y.view(x.shape) if residual is None else (y.view(x.shape), h.view(x.shape))


def forward(
    x: torch.Tensor,
    weight_D: torch.Tensor,
    bias_D: torch.Tensor | None,
    eps: float,
    *,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    impl: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Without autograd, for blocks: ``y, mean, rstd, h``.

    Args:
        x: ``[R, D]`` or ``[R, H, D]``; the last dimension contiguous.
        weight_D: scale per column.
        bias_D: shift per column, or None.
        eps: added to the variance.
        residual: added first, shaped as `x`; the last dimension contiguous.
        out: where y goes; any row strides.
        impl: see `layer_norm`.
    """
    if choose(impl, x) == "triton":
        from hasten.kernels.layer_norm import triton as kernels

        return kernels.layer_norm_fwd(x, weight_D, bias_D, eps, residual, out)
    y, mean, rstd, h = reference.layer_norm_fwd(x, weight_D, bias_D, eps, residual)
    return (y if out is None else out.copy_(y)), mean, rstd, h


def backward(
    dy: torch.Tensor,
    h: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    weight_D: torch.Tensor,
    *,
    dresidual: torch.Tensor | None = None,
    need_dw: bool = False,
    impl: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Without autograd, for blocks: ``dh``, and ``dw``, ``db`` (accumulation dtype) or None.

    Args:
        dy: gradient of y, shaped as `h`; any row strides.
        h: what was normalised.
        mean: from `forward`.
        rstd: from `forward`.
        weight_D: scale per column.
        dresidual: gradient that reaches `h` otherwise; added to dh.
        need_dw: whether the weight or the bias is trained; both gradients are made.
        impl: see `layer_norm`.
    """
    if choose(impl, h) == "triton":
        from hasten.kernels.layer_norm import triton as kernels

        return kernels.layer_norm_bwd(dy, h, mean, rstd, weight_D, dresidual, need_dw)
    return reference.layer_norm_bwd(dy, h, mean, rstd, weight_D, dresidual, need_dw)


@torch.library.custom_op("hasten::layer_norm", mutates_args=())
def _layer_norm(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    impl: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    y, mean, rstd, h = forward(x, weight, bias, eps, residual=residual, impl=impl)
    return y, (x.new_empty(0) if residual is None else h), mean, rstd  # an operator must not return its input


@_layer_norm.register_fake
def _(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    impl: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    h = x.new_empty(0) if residual is None else x.new_empty(x.shape)
    mean, rstd = (x.new_empty(x.shape[:-1], dtype=accumulation_dtype(x.dtype)) for _ in range(2))
    return x.new_empty(x.shape), h, mean, rstd


@torch.library.custom_op("hasten::layer_norm_backward", mutates_args=())
def _layer_norm_backward(
    dy: torch.Tensor,
    h: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    weight: torch.Tensor,
    dresidual: torch.Tensor | None,
    need_dw: bool,
    impl: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dh, dw, db = backward(dy, h, mean, rstd, weight, dresidual=dresidual, need_dw=need_dw, impl=impl)
    if dw is None or db is None:
        return dh, h.new_empty(0), h.new_empty(0)
    return dh, dw, db.clone()  # both may be parts of one tensor, and outputs of an operator must not be


@_layer_norm_backward.register_fake
def _(
    dy: torch.Tensor,
    h: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    weight: torch.Tensor,
    dresidual: torch.Tensor | None,
    need_dw: bool,
    impl: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    sums = (rstd.new_empty(weight.shape) if need_dw else h.new_empty(0) for _ in range(2))
    return h.new_empty(h.shape), next(sums), next(sums)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    x, residual, weight, bias, _, ctx.impl = inputs
    _, h, mean, rstd = output
    ctx.has_residual, ctx.bias_dtype = residual is not None, None if bias is None else bias.dtype
    ctx.save_for_backward(h if ctx.has_residual else x, mean, rstd, weight)


def _autograd(ctx: Any, dy: torch.Tensor, dresidual: torch.Tensor, *_: torch.Tensor) -> tuple[Any, ...]:
    h, mean, rstd, weight = ctx.saved_tensors
    _, _, weight_learns, bias_learns, _, _ = ctx.needs_input_grad
    arriving = dresidual.contiguous() if ctx.has_residual else None
    dh, dw, db = _layer_norm_backward(
        dy.contiguous(), h, mean, rstd, weight, arriving, weight_learns or bias_learns, ctx.impl
    )
    dweight = dw.to(weight.dtype) if weight_learns else None
    dbias = db.to(ctx.bias_dtype) if bias_learns else None
    return dh, (dh if ctx.has_residual else None), dweight, dbias, None, None


_layer_norm.register_autograd(_autograd, setup_context=_setup)
