"""linear_cross_entropy as an operator of torch: one node for autograd and for `torch.compile`.

`pick_chunk`, `chunked_logits`, `rows_loss` and `HeadGradients` are what any loss over a head's logits is made of.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from hasten.errors import ConfigError, DataError
from hasten.kernels.choice import Impl, accumulation_dtype, choose
from hasten.kernels.linear_cross_entropy import reference
from hasten.kernels.linear_cross_entropy.reference import RowMath

CHUNK_BYTES = 256 * 2**20
"""Most bytes of logits in memory at a time: products of a few thousand rows keep a large GPU busy."""

ALIGNMENT = 64
"""Rows of logits begin at multiples of so many values: matrix products want aligned rows, whatever the vocabulary."""


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    chunk_bytes: int = CHUNK_BYTES,
    impl: Impl = "auto",
) -> torch.Tensor:
    """Cross entropy of a linear head, summed over positions, with a chunk of the logits in memory at a time.

    ``z = logit_scale · (hidden Wᵀ + bias)``, then ``softcap · tanh(z / softcap)`` where given, and per position
    ``lse(z) - (1 - ε) z_target - ε mean(z) + z_loss · lse(z)²`` with ε the label smoothing.

    Shapes: `hidden` ``[N, D]``, `weight` ``[V, D]``, `targets` int64 ``[N]``, `bias` ``[V]``.
    Dtypes: float32, bfloat16, float16, one for hidden, weight and bias; rows and sums in float32.
    Saves for backward: the gradients themselves: as `hidden`, and 4 bytes per trained weight.
    Cost: 2·N·V·D FLOP, as much again for each gradient; bytes moved in README.md.
    Source: Milakov & Gimelshein 2018 for the online sum; written from the formulas, no code reused.
    Numerics: logits rounded once, as a head does; the incoming gradient multiplies last.

    A target that is neither `ignore_index` nor in the vocabulary is an error on a CPU; on a GPU, where a look would
    stop the queue, the loss is NaN.

    Args:
        hidden: hidden states.
        weight: the head's.
        targets: one per hidden state.
        bias: the head's, or None.
        ignore_index: the target of positions that give neither loss nor gradient.
        softcap: bound of the logits.
        logit_scale: factor of the logits.
        label_smoothing: share of the target spread over the vocabulary.
        z_loss: weight of the squared logarithm of the partition sum.
        chunk_bytes: most bytes of logits at a time.
        impl: ``torch``, ``triton``, or ``auto``: Triton on a GPU.

    Returns:
        The sum, a scalar in float32 (float64 for float64).

    Raises:
        ConfigError: shapes or dtypes do not fit together, or an option is out of its range.
        DataError: a target is out of range, on a CPU.
        CapabilityError: Triton was asked for and cannot run here.
    """
    require_head(hidden, weight, targets, bias, softcap)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ConfigError("label_smoothing", str(label_smoothing), "It is a share.", "Use a number from 0 to 1.")
    return _linear_cross_entropy(
        hidden, weight, targets, bias, ignore_index, softcap, logit_scale, label_smoothing, z_loss, chunk_bytes, impl,
        *wanted(hidden, weight, bias),
    )[0]  # fmt: skip


def forward(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    target_N: torch.Tensor,
    bias_V: torch.Tensor | None,
    math: RowMath,
    need: tuple[bool, bool, bool],
    *,
    chunk_bytes: int = CHUNK_BYTES,
    impl: str = "auto",
) -> tuple[torch.Tensor, HeadGradients]:
    """Without autograd: the summed loss, and the gradients of it that are needed.

    Args:
        hidden_ND: hidden states; any row stride.
        weight_VD: the head's weight.
        target_N: int64.
        bias_V: the head's bias or None.
        math: the loss of a row.
        need: whether hidden, weight and bias get gradients.
        chunk_bytes: most bytes of logits at a time.
        impl: see `linear_cross_entropy`.
    """
    require_targets(target_N, len(weight_VD), math.ignore_index)
    target_N = target_N.contiguous()
    gradients = HeadGradients.make(hidden_ND, weight_VD, bias_V, need)
    losses = [hidden_ND.new_zeros(0, dtype=accumulation_dtype(hidden_ND.dtype))]
    for rows, logits in chunked_logits(hidden_ND, weight_VD, bias_V, chunk_bytes):
        losses.append(rows_loss(logits, target_N[rows], math, gradient=any(need), impl=impl))
        if any(need):
            gradients.add(rows, logits)
    return torch.cat(losses).sum(), gradients


def pick_chunk(rows: int, vocabulary: int, itemsize: int, chunk_bytes: int = CHUNK_BYTES) -> int:
    """Positions per chunk: as many as fit, in chunks of about equal size, multiples of 128 where there are so many.

    Args:
        rows: positions.
        vocabulary: logits of each.
        itemsize: bytes of a logit.
        chunk_bytes: most bytes of a chunk.
    """
    fitting = max(1, chunk_bytes // (max(1, vocabulary) * itemsize))
    tile = 128 if fitting >= 128 else 1
    fitting -= fitting % tile
    chunks = -(-rows // fitting)
    even = -(-rows // max(1, chunks))
    return max(1, min(fitting, even + -even % tile))


def chunked_logits(
    hidden_ND: torch.Tensor, weight_VD: torch.Tensor, bias_V: torch.Tensor | None, chunk_bytes: int
) -> Iterator[tuple[slice, torch.Tensor]]:
    """The rows and the logits of each chunk; all chunks share one memory, which the caller may overwrite."""
    count, vocabulary = len(hidden_ND), len(weight_VD)
    padded = vocabulary + -vocabulary % ALIGNMENT
    size = min(count, pick_chunk(count, padded, hidden_ND.element_size(), chunk_bytes))
    memory = torch.empty((size, padded), dtype=hidden_ND.dtype, device=hidden_ND.device)
    for start in range(0, count, max(1, size)):
        rows = slice(start, min(start + size, count))
        logits = memory[: rows.stop - start, :vocabulary]
        if bias_V is None:
            torch.mm(hidden_ND[rows], weight_VD.t(), out=logits)
        else:
            torch.addmm(bias_V, hidden_ND[rows], weight_VD.t(), out=logits)
        yield rows, logits


def rows_loss(
    logits_RV: torch.Tensor,
    target_R: torch.Tensor,
    math: RowMath,
    *,
    gradient: bool,
    upstream_R: torch.Tensor | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """Losses per row, in the accumulation dtype; with `gradient`, dloss/dlogits is written over the logits.

    Args:
        logits_RV: the head's output; any row stride.
        target_R: int64, contiguous, as `upstream_R`.
        math: the loss.
        gradient: whether the logits become their gradient.
        upstream_R: factor of every row's gradient; None: 1.
        impl: see `linear_cross_entropy`.
    """
    if choose(impl, logits_RV) == "triton":
        from hasten.kernels.linear_cross_entropy import triton as kernels

        run = kernels.rows_loss
    else:
        run = reference.rows_loss
    return run(logits_RV, target_R, math, gradient=gradient, upstream_R=upstream_R)


@dataclass
class HeadGradients:
    """The gradients of a head's inputs, gathered chunk by chunk; None is not needed.

    Those of weight and bias are sums over chunks, in the accumulation dtype.
    """

    hidden_ND: torch.Tensor
    weight_VD: torch.Tensor
    dhidden_ND: torch.Tensor | None
    dweight_VD: torch.Tensor | None
    dbias_V: torch.Tensor | None

    @classmethod
    def make(
        cls, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, need: tuple[bool, bool, bool]
    ) -> HeadGradients:
        """Memory for what is needed: of hidden, weight and bias."""
        need_hidden, need_weight, need_bias = need
        wide, device = accumulation_dtype(hidden.dtype), hidden.device
        sums = torch.empty if len(hidden) else torch.zeros  # the first chunk is written, not added
        return cls(
            hidden,
            weight,
            torch.empty(hidden.shape, dtype=hidden.dtype, device=device) if need_hidden else None,
            sums(weight.shape, dtype=wide, device=device) if need_weight else None,
            torch.zeros(len(weight), dtype=wide, device=device) if need_bias and bias is not None else None,
        )

    def add(self, rows: slice, dlogits: torch.Tensor) -> None:
        """One chunk's part."""
        if self.dhidden_ND is not None:
            torch.mm(dlogits, self.weight_VD, out=self.dhidden_ND[rows])
        if self.dweight_VD is not None:
            _add_product(self.dweight_VD, dlogits.t(), self.hidden_ND[rows], beta=1 if rows.start else 0)
        if self.dbias_V is not None:
            self.dbias_V.add_(dlogits.sum(0, dtype=self.dbias_V.dtype))

    def as_outputs(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """For an operator, which returns tensors only: empty ones for what is not needed."""
        return (
            self.hidden_ND.new_empty(0) if self.dhidden_ND is None else self.dhidden_ND,
            self.hidden_ND.new_empty(0) if self.dweight_VD is None else self.dweight_VD,
            self.hidden_ND.new_empty(0) if self.dbias_V is None else self.dbias_V,
        )


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, beta: int) -> None:
    """``total = beta * total + left @ right``, summed in the dtype of `total`."""
    if total.dtype == left.dtype:
        total.addmm_(left, right, beta=beta)
    elif total.is_cuda:
        torch.addmm(total, left, right, out_dtype=total.dtype, beta=beta, out=total)
    else:  # a CPU's products have no wider result
        total.addmm_(left.to(total.dtype), right.to(total.dtype), beta=beta)


def wanted(*parts: torch.Tensor | None) -> list[bool]:
    """Which of the parts will be asked for a gradient."""
    return [torch.is_grad_enabled() and part is not None and part.requires_grad for part in parts]


def require_head(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, bias: torch.Tensor | None, softcap: float | None
) -> None:
    """What a head's loss is computed from fits together.

    Raises:
        ConfigError: it does not.
    """
    parts = {"hidden": hidden, "weight": weight, "targets": targets} | ({} if bias is None else {"bias": bias})
    fits = hidden.ndim == 2 and weight.ndim == 2 and hidden.shape[1] == weight.shape[1]
    fits = fits and targets.shape == hidden.shape[:1] and (bias is None or bias.shape == weight.shape[:1])
    same = hidden.dtype == weight.dtype and (bias is None or bias.dtype == hidden.dtype)
    if not (fits and same and targets.dtype == torch.int64):
        raise ConfigError(
            "head",
            ", ".join(f"{name} {list(part.shape)} {part.dtype}" for name, part in parts.items()),
            "A head takes hidden [N, D], weight [V, D], bias [V] of one dtype, and int64 targets [N].",
            "Reshape or convert them.",
        )
    if softcap is not None and not softcap > 0:
        raise ConfigError("softcap", str(softcap), "It bounds the logits.", "Use a number above 0, or None.")


def require_targets(targets: torch.Tensor, vocabulary: int, ignore_index: int) -> None:
    """Every target is in the vocabulary or ignored; looked at on a CPU only, where it does not stop a queue.

    Raises:
        DataError: one is not.
    """
    if targets.device.type != "cpu":
        return
    wrong = (targets != ignore_index) & ((targets < 0) | (targets >= vocabulary))
    if bool(wrong.any()):
        first = int(wrong.nonzero()[0])
        raise DataError(
            "targets",
            f"{int(targets[first])} at position {first}",
            f"The vocabulary has {vocabulary} tokens, numbered from 0; {ignore_index} is ignored.",
            "Check that the labels were made with this model's tokenizer.",
        )


@torch.library.custom_op("hasten::linear_cross_entropy", mutates_args=())
def _linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    ignore_index: int,
    softcap: float | None,
    logit_scale: float,
    label_smoothing: float,
    z_loss: float,
    chunk_bytes: int,
    impl: str,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    math = RowMath(ignore_index, logit_scale, softcap, 1.0, label_smoothing, z_loss)
    need = (need_hidden, need_weight, need_bias)
    loss, gradients = forward(hidden, weight, targets, bias, math, need, chunk_bytes=chunk_bytes, impl=impl)
    return loss, *gradients.as_outputs()


@_linear_cross_entropy.register_fake
def _(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    ignore_index: int,
    softcap: float | None,
    logit_scale: float,
    label_smoothing: float,
    z_loss: float,
    chunk_bytes: int,
    impl: str,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    wide = accumulation_dtype(hidden.dtype)
    return (
        hidden.new_empty((), dtype=wide),
        hidden.new_empty(hidden.shape if need_hidden else 0),
        weight.new_empty(weight.shape, dtype=wide) if need_weight else hidden.new_empty(0),
        bias.new_empty(bias.shape, dtype=wide) if need_bias and bias is not None else hidden.new_empty(0),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    hidden, weight, _, bias, *_, need_hidden, need_weight, need_bias = inputs
    ctx.set_materialize_grads(False)  # the gradients are outputs of which nobody asks for a gradient
    ctx.dtypes = [
        part.dtype if need else None
        for part, need in ((hidden, need_hidden), (weight, need_weight), (bias, need_bias))
    ]  # fmt: skip
    ctx.save_for_backward(*output[1:])


def _autograd(ctx: Any, dloss: torch.Tensor | None, *_: Any) -> tuple[Any, ...]:
    scaled: list[torch.Tensor | None] = [None, None, None]
    if dloss is not None:
        scaled = [
            None if dtype is None else (part * dloss).to(dtype)
            for part, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
    dhidden, dweight, dbias = scaled
    return dhidden, dweight, None, dbias, *[None] * 10


_linear_cross_entropy.register_autograd(_autograd, setup_context=_setup)
