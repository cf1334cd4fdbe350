"""token_logprobs as an operator of torch: one node for autograd and for `torch.compile`.

The row work is that of `hasten.kernels.linear_cross_entropy`, of which this is minus the loss per position.
"""

from __future__ import annotations

from typing import Any

import torch

from hasten.errors import ConfigError
from hasten.kernels.choice import Impl, accumulation_dtype
from hasten.kernels.linear_cross_entropy.op import (
    CHUNK_BYTES,
    HeadGradients,
    chunked_logits,
    require_head,
    require_targets,
    rows_loss,
)
from hasten.kernels.linear_cross_entropy.reference import RowMath


def token_logprobs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    temperature: float = 1.0,
    ignore_index: int = -100,
    chunk_bytes: int = CHUNK_BYTES,
    impl: Impl = "auto",
) -> torch.Tensor:
    """Log-probability of each target under a linear head, with a chunk of the logits in memory at a time.

    ``z = logit_scale · (hidden Wᵀ + bias)``, then ``softcap · tanh(z / softcap)`` where given, and per position
    ``log softmax(z / temperature)[target]``.

    Shapes: `hidden` ``[N, D]``, `weight` ``[V, D]``, `targets` int64 ``[N]``, `bias` ``[V]``.
    Dtypes: float32, bfloat16, float16, one for hidden, weight and bias; rows and sums in float32.
    Saves for backward: the inputs; the logits are made again.
    Cost: 2·N·V·D FLOP in each direction, as much again for each gradient.
    Source: written from the formulas, no code reused.
    Numerics: logits rounded once; temperature and cap act on float32.

    A target that is neither `ignore_index` nor in the vocabulary is an error on a CPU; on a GPU, where a look would
    stop the queue, its log-probability is NaN.

    Args:
        hidden: hidden states.
        weight: the head's.
        targets: one per hidden state.
        bias: the head's, or None.
        softcap: bound of the logits.
        logit_scale: factor of the logits.
        temperature: what logits are divided by, after the cap.
        ignore_index: the target of positions that give 0 and no gradient.
        chunk_bytes: most bytes of logits at a time.
        impl: ``torch``, ``triton``, or ``auto``: Triton on a GPU.

    Returns:
        ``[N]`` in float32 (float64 for float64).

    Raises:
        ConfigError: shapes or dtypes do not fit together, or an option is out of its range.
        DataError: a target is out of range, on a CPU.
        CapabilityError: Triton was asked for and cannot run here.
    """
    require_head(hidden, weight, targets, bias, softcap)
    if not temperature > 0:
        raise ConfigError("temperature", str(temperature), "Logits are divided by it.", "Use a number above 0.")
    return _token_logprobs(
        hidden, weight, targets, bias, ignore_index, softcap, logit_scale, temperature, chunk_bytes, impl
    )


def forward(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    target_N: torch.Tensor,
    bias_V: torch.Tensor | None,
    math: RowMath,
    *,
    chunk_bytes: int = CHUNK_BYTES,
    impl: str = "auto",
) -> torch.Tensor:
    """Without autograd: ``[N]`` log-probabilities; arguments as those of linear_cross_entropy's `forward`."""
    require_targets(target_N, len(weight_VD), math.ignore_index)
    target_N = target_N.contiguous()
    losses = [hidden_ND.new_zeros(0, dtype=accumulation_dtype(hidden_ND.dtype))]
    for rows, logits in chunked_logits(hidden_ND, weight_VD, bias_V, chunk_bytes):
        losses.append(rows_loss(logits, target_N[rows], math, gradient=False, impl=impl))
    return 0.0 - torch.cat(losses)  # not the negative: what is ignored is 0, without a sign


def backward(
    dlogp_N: torch.Tensor,
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    target_N: torch.Tensor,
    bias_V: torch.Tensor | None,
    math: RowMath,
    need: tuple[bool, bool, bool],
    *,
    chunk_bytes: int = CHUNK_BYTES,
    impl: str = "auto",
) -> HeadGradients:
    """Without autograd: the gradients of hidden, weight and bias that are needed.

    Args:
        dlogp_N: gradient of each log-probability.
        hidden_ND: as in `forward`, as all that follow.
        weight_VD: the head's weight.
        target_N: int64.
        bias_V: the head's bias or None.
        math: the loss of a row.
        need: whether hidden, weight and bias get gradients.
        chunk_bytes: most bytes of logits at a time.
        impl: see `token_logprobs`.
    """
    target_N, upstream_N = target_N.contiguous(), (-dlogp_N).contiguous()
    gradients = HeadGradients.make(hidden_ND, weight_VD, bias_V, need)
    for rows, logits in chunked_logits(hidden_ND, weight_VD, bias_V, chunk_bytes):
        rows_loss(logits, target_N[rows], math, gradient=True, upstream_R=upstream_N[rows], impl=impl)
        gradients.add(rows, logits)
    return gradients


def _math(ignore_index: int, softcap: float | None, logit_scale: float, temperature: float) -> RowMath:
    return RowMath(ignore_index, logit_scale, softcap, 1.0 / temperature)


@torch.library.custom_op("hasten::token_logprobs", mutates_args=())
def _token_logprobs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    ignore_index: int,
    softcap: float | None,
    logit_scale: float,
    temperature: float,
    chunk_bytes: int,
    impl: str,
) -> torch.Tensor:
    math = _math(ignore_index, softcap, logit_scale, temperature)
    return forward(hidden, weight, targets, bias, math, chunk_bytes=chunk_bytes, impl=impl)


@_token_logprobs.register_fake
def _(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    ignore_index: int,
    softcap: float | None,
    logit_scale: float,
    temperature: float,
    chunk_bytes: int,
    impl: str,
) -> torch.Tensor:
    return hidden.new_empty(hidden.shape[0], dtype=accumulation_dtype(hidden.dtype))


@torch.library.custom_op("hasten::token_logprobs_backward", mutates_args=())
def _token_logprobs_backward(
    dlogp: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    ignore_index: int,
    softcap: float | None,
    logit_scale: float,
    temperature: float,
    chunk_bytes: int,
    impl: str,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    math, need = _math(ignore_index, softcap, logit_scale, temperature), (need_hidden, need_weight, need_bias)
    gradients = backward(dlogp, hidden, weight, targets, bias, math, need, chunk_bytes=chunk_bytes, impl=impl)
    dhidden, dweight, dbias = gradients.as_outputs()
    return dhidden, dweight.to(hidden.dtype), dbias.to(hidden.dtype)


@_token_logprobs_backward.register_fake
def _(
    dlogp: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    ignore_index: int,
    softcap: float | None,
    logit_scale: float,
    temperature: float,
    chunk_bytes: int,
    impl: str,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return (
        hidden.new_empty(hidden.shape if need_hidden else 0),
        hidden.new_empty(weight.shape if need_weight else 0),
        hidden.new_empty(bias.shape if need_bias and bias is not None else 0),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    hidden, weight, targets, bias, *ctx.options = inputs
    ctx.save_for_backward(hidden, weight, targets, bias)


def _autograd(ctx: Any, dlogp: torch.Tensor) -> tuple[Any, ...]:
    need_hidden, need_weight, _, need_bias, *_ = ctx.needs_input_grad
    need = (need_hidden, need_weight, need_bias)
    parts = _token_logprobs_backward(dlogp, *ctx.saved_tensors, *ctx.options, *need)
    dhidden, dweight, dbias = (part if wanted else None for part, wanted in zip(parts, need, strict=True))
    return dhidden, dweight, None, dbias, *[None] * 6


_token_logprobs.register_autograd(_autograd, setup_context=_setup)
