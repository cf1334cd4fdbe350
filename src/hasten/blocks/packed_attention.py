"""Attention over packed rows: documents laid end to end in one row, each attending to itself only.

    row        a0 a1 a2 | b0 b1 | c0 c1 c2 c3          cu_seq_lens = 0 3 5 9
    position    0  1  2 |  0  1 |  0  1  2  3

The boundaries travel as `cu_seq_lens_q`, the keyword that transformers hands through to every attention layer, and
attention runs once per document. So isolation depends on nothing else: no mask, no cache flag, no position trick; and
no T x T mask is ever made. Cost: sum of squares of the document lengths instead of the square of their sum.

It is registered through transformers' own extension point when first used, and is active only inside the context
`packed_attention(model)`; the model's attention is untouched before and after. Called without boundaries it refuses.

Shapes: B batch, H query heads, K key/value heads, T tokens, D head dim.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

from hasten.errors import CapabilityError

NAME = "hasten_packed"


@contextmanager
def packed_attention(model: Any) -> Iterator[None]:
    """Let a model read packed rows inside the block; its own attention is back afterwards.

    Where layers are recomputed (gradient checkpointing), the backward belongs inside the block too.

    Args:
        model: a transformers model or a `PeftModel` on one, whose attention layers use `AttentionInterface`.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention_forward)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    before = base.config._attn_implementation
    if before == NAME:  # a block inside a block: the outer one has walked the model, and will put everything back
        yield
        return
    base.set_attn_implementation(NAME)
    try:
        yield
    finally:
        base.set_attn_implementation(before)


def packed_attention_forward(
    module: torch.nn.Module,
    query_BHTD: torch.Tensor,
    key_BKTD: torch.Tensor,
    value_BKTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    ordered: bool = False,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document; transformers' attention signature.

    Args:
        module: the attention layer (unused; part of the signature).
        query_BHTD: queries, B = 1.
        key_BKTD: keys, K divides H.
        value_BKTD: values.
        attention_mask: must be None: boundaries isolate documents, masks do not.
        dropout: attention dropout probability.
        scaling: factor on the scores; None is 1/sqrt(D).
        sliding_window: how many positions back a query sees, itself included; None is all.
        cu_seq_lens_q: int32 ``[documents + 1]``, starts of the documents and the end of the row.
        max_length_q: the longest document; None finds it out.
        ordered: the caller runs the backward inside `ordered_backward`, so the fast kernel repeats itself.
        **kwargs: what a family adds; `softcap` is refused.

    Returns:
        Attention output ``[B, T, H, D]`` and None (no weights are returned).

    Raises:
        CapabilityError: no boundaries, a mask, a batch, a cache that holds earlier tokens, or soft-capped scores.
    """
    cached = key_BKTD.shape[2] - query_BHTD.shape[2]
    softcap = kwargs.get("softcap")
    if cu_seq_lens_q is None or attention_mask is not None or query_BHTD.shape[0] != 1 or cached or softcap:
        raise CapabilityError(
            "packed attention",
            f"batch {query_BHTD.shape[0]}, boundaries {'given' if cu_seq_lens_q is not None else 'missing'}, "
            f"mask {'given' if attention_mask is not None else 'none'}, {cached} cached tokens, softcap {softcap}",
            "It reads one packed row with its document boundaries and no mask.",
            "Leave the block `packed_attention(model)` to run ordinary batches.",
        )
    if runs_varlen(query_BHTD, value_BKTD, sliding_window, max_length_q, dropout, ordered=ordered):
        out_THD = _varlen(query_BHTD, key_BKTD, value_BKTD, scaling, cu_seq_lens_q, max_length_q)
        return out_THD.unsqueeze(0), None
    lengths = [length for length in cu_seq_lens_q.diff().tolist() if length]  # rounded rows have empty documents
    documents = zip(
        query_BHTD.split(lengths, dim=2),
        key_BKTD.split(lengths, dim=2),
        value_BKTD.split(lengths, dim=2),
        strict=True,
    )
    outputs = [
        F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=_window_mask(query, sliding_window),
            dropout_p=dropout,
            is_causal=not _window_cuts(query, sliding_window),
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        for query, key, value in documents
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def runs_varlen(
    query_BHTD: torch.Tensor,
    value_BKTD: torch.Tensor,
    window: int | None,
    longest: int | None,
    dropout: float,
    *,
    ordered: bool,
) -> bool:
    """Whether documents go through torch's variable-length kernel, or one by one; see `packed_attention_forward`."""
    if longest is not None and window is not None and window >= longest:
        window = None  # no document is long enough to notice
    return _varlen_fits(query_BHTD, value_BKTD, window, dropout, ordered)


@contextmanager
def ordered_backward() -> Iterator[None]:
    """Where repeatable arithmetic is asked for, let flash attention's backward add in one order inside the block.

    torch orders it only in strict mode, and strict mode refuses cuBLAS without an environment variable. So it is strict
    for this one backward, in which no cuBLAS product takes part.
    """
    lenient = torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()
    if not lenient:
        yield
        return
    torch.use_deterministic_algorithms(True, warn_only=False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=True)


def _window_cuts(query_BHTD: torch.Tensor, window: int | None) -> bool:
    return window is not None and query_BHTD.shape[2] > window


def _window_mask(query_BHTD: torch.Tensor, window: int | None) -> torch.Tensor | None:
    if window is None or not _window_cuts(query_BHTD, window):
        return None
    position = torch.arange(query_BHTD.shape[2], device=query_BHTD.device)
    back = position[:, None] - position[None, :]
    return (back >= 0) & (back < window)


def _varlen_fits(
    query_BHTD: torch.Tensor, value_BKTD: torch.Tensor, window: int | None, dropout: float, ordered: bool
) -> bool:
    """torch's variable-length kernel: CUDA, 16 bit and one type for all three, no window, no dropout.

    Where repeatable arithmetic is asked for, only if the backward will be ordered: by itself it adds in any order (seen
    with torch 2.11 on an H100; docs/LOG.md).
    """
    if torch.are_deterministic_algorithms_enabled() and not ordered:
        return False
    sixteen_bit = query_BHTD.dtype in (torch.bfloat16, torch.float16) and query_BHTD.dtype == value_BKTD.dtype
    head_fits = query_BHTD.shape[3] % 8 == 0 and query_BHTD.shape[3] <= 256
    return query_BHTD.is_cuda and sixteen_bit and head_fits and window is None and dropout == 0.0 and _varlen_scales()


@cache
def _varlen_scales() -> bool:
    """Whether this torch has the kernel, and it takes a scale and a window (2.10's takes neither)."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ModuleNotFoundError:  # a vendor's build of a torch that was not released yet
        return False
    return {"scale", "window_size"} <= set(inspect.signature(varlen_attn).parameters)


def _varlen(
    query_BHTD: torch.Tensor,
    key_BKTD: torch.Tensor,
    value_BKTD: torch.Tensor,
    scaling: float | None,
    cu_seq_lens: torch.Tensor,
    longest: int | None,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    groups = query_BHTD.shape[1] // key_BKTD.shape[1]
    query_THD, key_TKD, value_TKD = (part.squeeze(0).transpose(0, 1) for part in (query_BHTD, key_BKTD, value_BKTD))
    # The kernel shares key heads too, but its backward is faster with one per query head (docs/LOG.md).
    key_THD, value_THD = (
        part.unsqueeze(2).expand(-1, -1, groups, -1).reshape(query_THD.shape[0], -1, part.shape[-1])
        for part in (key_TKD, value_TKD)
    )
    longest = longest if longest is not None else int(cu_seq_lens.diff().max())
    starts = cu_seq_lens.to(torch.int32)
    out_THD = varlen_attn(
        query_THD, key_THD, value_THD, starts, starts, longest, longest, window_size=(-1, 0), scale=scaling
    )
    assert isinstance(out_THD, torch.Tensor)  # a pair only where the log-sum-exp is asked for
    return out_THD
