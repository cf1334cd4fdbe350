"""Attention as blocks call it: queries, keys and values in, the right and fastest kernel of torch's chosen.

Three forms: a whole causal row, packed documents, a mask that transformers made (padding, windows). Documents of one
length are a batch of whole rows. On Hopper and later cuDNN's kernel is about twice as fast for long rows as the others
(docs/LOG.md). But it plans anew for every shape, which takes longer than a step, and torch takes it for any row with a
mask; so it may run only where shapes repeat: causal rows of a length that is a multiple of 128.

The backward is torch's: `Attended` keeps the small graph of this one call, made inside a block's own forward. A plan of
cuDNN's backward holds the strides of the output's gradient, but torch finds plans again by those of queries, keys and
values (2.11 and 2.13): a second layout is read with the strides of the first, which gives wrong gradients or ends in an
illegal access. Adapters differ in width between layers, and so do the rows of their gradients. So everything but the
variable-length kernel is given contiguous gradients, whoever computes it.

Shapes: B batch, T tokens, H query heads, K key/value heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

from hasten.blocks.packed_attention import ordered_backward, packed_attention_forward, runs_varlen

_PREFERRED_FROM = (9, 0)
_LENGTHS = 128


@dataclass(frozen=True)
class View:
    """Who sees whom, for one forward of the model; shared by its layers."""

    mask: torch.Tensor | None = None
    """What transformers made: bool or added to the scores, ``[B, 1, T, T]``; None is causal."""
    cu_seq_lens: torch.Tensor | None = None
    """Starts of packed documents and the row's end, int32; None is not packed."""
    longest: int | None = None
    scaling: float | None = None
    window: int | None = None
    dropout: float = 0.0

    def equal_documents(self, tokens: int) -> int:
        """How many packed documents there are, if all have one length that no window cuts; 0 otherwise.

        Known without asking the device: only equal ones add up to the longest times their number.
        """
        if self.cu_seq_lens is None or self.longest is None or (self.window is not None and self.window < self.longest):
            return 0
        documents = self.cu_seq_lens.shape[0] - 1
        return documents if documents * self.longest == tokens else 0


@dataclass
class Attended:
    """Output of attention and the graph that leads to it."""

    output_BTHD: torch.Tensor
    inputs: tuple[torch.Tensor, ...]
    """Queries, keys, values."""
    any_layout: bool
    """Whether the backward takes gradients as they lie."""
    ordered: bool = False
    """Whether the backward is flash attention's over packed rows, which can be ordered."""

    def backward(self, doutput_BTHD: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Gradients of queries, keys and values, each ``[B, T, heads, D]``."""
        if doutput_BTHD.is_cuda and not self.any_layout:
            doutput_BTHD = doutput_BTHD.contiguous()  # noqa: N806
        if not self.ordered:
            return torch.autograd.grad(self.output_BTHD, self.inputs, doutput_BTHD)
        with ordered_backward():
            return torch.autograd.grad(self.output_BTHD, self.inputs, doutput_BTHD)


def attend(
    query_BTHD: torch.Tensor, key_BTKD: torch.Tensor, value_BTKD: torch.Tensor, view: View, *, learn: bool
) -> Attended:
    """Attention over one batch.

    Args:
        query_BTHD: queries, any strides with a contiguous last dimension.
        key_BTKD: keys, K divides H.
        value_BTKD: values.
        view: who sees whom.
        learn: keep what the backward needs.
    """
    ordered = view.cu_seq_lens is not None and query_BTHD.is_cuda and torch.are_deterministic_algorithms_enabled()
    inputs = tuple(part.detach().requires_grad_(learn) for part in (query_BTHD, key_BTKD, value_BTKD))
    with torch.set_grad_enabled(learn):
        documents = 0 if ordered else view.equal_documents(query_BTHD.shape[1])
        if documents:
            rows = [part.unflatten(1, (documents, -1)).squeeze(0).transpose(1, 2) for part in inputs]
            output = _dense(rows[0], rows[1], rows[2], view).transpose(1, 2).flatten(0, 1).unsqueeze(0)
            return Attended(output, inputs, any_layout=False)
        query, key, value = (part.transpose(1, 2) for part in inputs)
        packed = view.cu_seq_lens is not None
        any_layout = packed and runs_varlen(query, value, view.window, view.longest, view.dropout, ordered=ordered)
        if packed:
            output, _ = packed_attention_forward(
                _NO_MODULE,
                query,
                key,
                value,
                None,
                dropout=view.dropout,
                scaling=view.scaling,
                sliding_window=view.window,
                cu_seq_lens_q=view.cu_seq_lens,
                max_length_q=view.longest,
                ordered=ordered,
            )
        else:
            output = _dense(query, key, value, view).transpose(1, 2)
    return Attended(output, inputs, any_layout, ordered)


_NO_MODULE: Any = None


def _dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, view: View) -> torch.Tensor:
    arguments: dict[str, Any] = {
        "attn_mask": view.mask,
        "dropout_p": view.dropout,
        "is_causal": view.mask is None and query.shape[2] > 1,
        "scale": view.scaling,
        "enable_gqa": query.shape[1] != key.shape[1],
    }
    if not query.is_cuda or torch.are_deterministic_algorithms_enabled():  # who wants order has chosen the kernels
        return F.scaled_dot_product_attention(query, key, value, **arguments)
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if arguments["enable_gqa"] and (view.mask is not None or query.dtype == torch.float32):
        # The one fused kernel for masks and float32 does not share key heads.
        arguments["enable_gqa"], groups = False, query.shape[1] // key.shape[1]
        key, value = (part.unsqueeze(2).expand(-1, -1, groups, -1, -1).flatten(1, 2) for part in (key, value))
    order = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    if view.mask is None and _prefers_cudnn(query):
        order.insert(0, SDPBackend.CUDNN_ATTENTION)
    _let_torch_choose(query.device)
    with sdpa_kernel(order, set_priority=True):
        return F.scaled_dot_product_attention(query, key, value, **arguments)


@cache
def _let_torch_choose(device: torch.device) -> None:
    """At its first attention torch puts its kernels in the order that it prefers on a card (cuDNN's first on Hopper,
    seen with 2.11). Were that one within `sdpa_kernel`, its end would undo it, and every other model would go without.
    """
    one = torch.zeros(1, 1, 1, 8, dtype=torch.float16, device=device)
    F.scaled_dot_product_attention(one, one, one)


def _prefers_cudnn(query_BHTD: torch.Tensor) -> bool:
    if not query_BHTD.is_cuda or query_BHTD.dtype not in (torch.bfloat16, torch.float16):
        return False
    if query_BHTD.shape[2] % _LENGTHS:
        return False
    return _capability(query_BHTD.device) >= _PREFERRED_FROM


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
