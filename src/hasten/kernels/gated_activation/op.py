"""gated_activation as an operator of torch: one node for autograd and for `torch.compile`."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch

from hasten.errors import ConfigError, did_you_mean
from hasten.kernels.choice import Impl, choose
from hasten.kernels.fp8 import reference as fp8
from hasten.kernels.gated_activation import reference

Kind = Literal["silu", "gelu", "gelu_tanh"]


def gated_activation(gate: torch.Tensor, up: torch.Tensor, kind: Kind = "silu", *, impl: Impl = "auto") -> torch.Tensor:
    """The hidden values of a gated MLP.

    ``a = f(gate) · up``.

    Shapes: `gate` and `up` ``[..., N]``.
    Dtypes: float32, bfloat16, float16; float32 inside; output as input.
    Saves for backward: gate and up.
    Cost: about 10 FLOP and 3 values moved per output value.
    Source: Shazeer 2020, Hendrycks & Gimpel 2016; written from the formulas, no code reused.
    Numerics: one rounding; composed torch rounds f(gate) first.

    Args:
        gate: what goes through f.
        up: what is multiplied.
        kind: f.
        impl: ``torch``, ``triton``, or ``auto``: Triton on a GPU.

    Raises:
        ConfigError: an unknown kind.
        CapabilityError: Triton was asked for and cannot run here.
    """
    require_kind(kind)
    rows, rows_up = gate.reshape(-1, gate.shape[-1]), up.reshape(-1, up.shape[-1])
    return _gated_activation(rows, rows_up, kind, impl).view(gate.shape)


def require_kind(kind: str) -> None:
    """Refuse an activation that has no kernel.

    Raises:
        ConfigError: naming the nearest one.
    """
    kinds = get_args(Kind)
    if kind not in kinds:
        raise ConfigError("kind", repr(kind), f"Allowed: {', '.join(kinds)}.", did_you_mean(kind, kinds, "Use 'silu'."))


def forward(
    gate: torch.Tensor,
    up: torch.Tensor,
    kind: str,
    *,
    out: torch.Tensor | None = None,
    eight: tuple[torch.Tensor, torch.Tensor] | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """Without autograd, for blocks: the product, in `out` where that is given.

    Args:
        gate: ``[M, N]``, any row stride.
        up: ``[M, N]``, any row stride.
        kind: see `gated_activation`.
        out: ``[M, N]``, any row stride.
        eight: where the product goes in 8 bits too, ``[M, N]`` and ``[M, 1]`` from `hasten.kernels.fp8.op.new_rows`.
        impl: see `gated_activation`.
    """
    if choose(impl, gate) == "triton":
        from hasten.kernels.gated_activation import triton as kernels

        target = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device) if out is None else out
        return kernels.forward(gate, up, kind, target, eight)
    product = reference.forward(gate, up, kind, out)
    if eight is not None:
        fp8.quantize_rows(product, None, *eight)
    return product


def backward(
    da: torch.Tensor,
    gate: torch.Tensor,
    up: torch.Tensor,
    kind: str,
    *,
    dgate: torch.Tensor | None = None,
    dup: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    lora: tuple[torch.Tensor, torch.Tensor] | None = None,
    impl: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Without autograd, for blocks: ``dgate, dup``.

    Args:
        da: gradient of the product, ``[M, N]``, any row stride.
        gate: as in `forward`.
        up: as in `forward`.
        kind: see `gated_activation`.
        dgate: where its gradient goes; may be `gate` itself.
        dup: where its gradient goes; may be `up` itself.
        out: where the product is written again, if it is wanted.
        lora: ``[M, P]`` and ``[P, N]`` whose product is still to be added to `da`: an adapter's part of the gradient.
        impl: see `gated_activation`.
    """
    if choose(impl, gate) == "triton":
        from hasten.kernels.gated_activation import triton as kernels

        targets = [
            torch.empty(gate.shape, dtype=gate.dtype, device=gate.device) if target is None else target
            for target in (dgate, dup)
        ]
        return kernels.backward(da, gate, up, kind, targets[0], targets[1], out, lora)
    if lora is not None:
        da = torch.addmm(da, *lora)
    own_dgate, own_dup, product = reference.backward(da, gate, up, kind)
    if out is not None:
        out.copy_(product)
    return (
        own_dgate if dgate is None else dgate.copy_(own_dgate),
        own_dup if dup is None else dup.copy_(own_dup),
    )


@torch.library.custom_op("hasten::gated_activation", mutates_args=())
def _gated_activation(gate: torch.Tensor, up: torch.Tensor, kind: str, impl: str) -> torch.Tensor:
    return forward(gate, up, kind, impl=impl)


@_gated_activation.register_fake
def _(gate: torch.Tensor, up: torch.Tensor, kind: str, impl: str) -> torch.Tensor:
    return gate.new_empty(gate.shape)


@torch.library.custom_op("hasten::gated_activation_backward", mutates_args=())
def _gated_activation_backward(
    da: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, kind: str, impl: str
) -> tuple[torch.Tensor, torch.Tensor]:
    return backward(da, gate, up, kind, impl=impl)


@_gated_activation_backward.register_fake
def _(
    da: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, kind: str, impl: str
) -> tuple[torch.Tensor, torch.Tensor]:
    return gate.new_empty(gate.shape), up.new_empty(up.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    gate, up, ctx.kind, ctx.impl = inputs
    ctx.save_for_backward(gate, up)


def _autograd(ctx: Any, da: torch.Tensor) -> tuple[Any, ...]:
    dgate, dup = _gated_activation_backward(da.contiguous(), *ctx.saved_tensors, ctx.kind, ctx.impl)
    return dgate, dup, None, None


_gated_activation.register_autograd(_autograd, setup_context=_setup)
