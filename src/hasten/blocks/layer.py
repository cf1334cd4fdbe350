"""A decoder layer that computes its two halves by hand-derived functions, and stays the layer that it was.

The layer's class is exchanged for a subclass of it with another ``forward`` (as torch's own FSDP2 does): its children,
its parameters, their names and every ``isinstance`` are as before, and putting the class back undoes it. Where the fast
forward does not apply (generation with a cache, attention weights asked for, adapters with dropout), the layer's own
forward runs.

Each half is one autograd function, and of very long rows the whole layer is (`hasten.blocks.whole_layer`). The gradient
of everything in it is computed by the half's own backward; what is kept for that is the policy's choice
(`hasten.policies`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hasten.blocks.attention import View
from hasten.blocks.attention_half import AttentionCall, AttentionHalf
from hasten.blocks.mlp_half import MlpCall, MlpHalf
from hasten.blocks.offload import Offload
from hasten.blocks.operand import Operand
from hasten.blocks.packed_attention import NAME as PACKED
from hasten.blocks.projections import ProjectionGroup
from hasten.blocks.whole_layer import LayerCall, WholeLayer
from hasten.policies import LONG, Keeps, Policy, attention_keeps, mlp_keeps

CACHES = ("cache", "past_key_values")
"""What transformers calls the key/value cache: 5.2x and later, before."""


@dataclass
class Fast:
    """What a fast layer knows beside its modules."""

    attention: AttentionHalf
    mlp: MlpHalf
    window: int | None
    parts: tuple[nn.Module, ...]
    """Attention, MLP and norms: what the fast forward does not call, so that hooks on them would not be heard."""
    dropouts: tuple[nn.Dropout, ...] = ()
    """On the residual path; the fast forward has none."""
    policy: Policy = "keep"
    recompute: bool = False
    """Whether transformers' own switch asks for recomputation (``gradient_checkpointing_enable``)."""
    offload: Offload = field(default_factory=Offload)
    refused: set[str] = field(default_factory=set)
    """Why the layer's own forward has run in training, if it has."""

    @property
    def effective(self) -> Policy:
        """The policy, with transformers' switch on top."""
        return (
            "recompute" if self.recompute and self.policy in ("keep", "elementwise", "recompute_mlp") else self.policy
        )

    def groups(self) -> tuple[Any, ...]:
        """Its four projection groups."""
        return self.attention.qkv, self.attention.out, self.mlp.gate_up, self.mlp.down


class FastLayer(nn.Module):
    """Mixed into a decoder layer's class; see `fast_class`."""

    hasten_fast: Fast

    @property
    def gradient_checkpointing(self) -> bool:
        """False for transformers, which must not checkpoint what decides itself what to keep."""
        return False

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, wanted: bool) -> None:
        self.hasten_fast.recompute = bool(wanted)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Any = None,
        position_ids: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """The layer's output, as its own forward gives it."""
        fast = self.hasten_fast
        reason = _refusal(self, fast, attention_mask, args, kwargs)
        if reason is not None:
            plain = super().forward
            if not (self.training and torch.is_grad_enabled()):
                return plain(hidden_states, attention_mask, position_ids, *args, **kwargs)
            fast.refused.add(reason)
            warnings.warn(f"a fast layer runs its own, slower forward: {reason}", stacklevel=2)  # shown once per reason
            cached = any(kwargs.get(name) is not None for name in CACHES)
            if fast.effective in ("recompute", "offload") and not cached:  # what was promised of memory holds here too
                call = partial(plain, hidden_states, attention_mask, position_ids, *args, **kwargs)
                return checkpoint(call, use_reentrant=False)
            return plain(hidden_states, attention_mask, position_ids, *args, **kwargs)
        return run_layer(self, fast, hidden_states, attention_mask, kwargs)


@cache
def fast_class(original: type[nn.Module]) -> type[nn.Module]:
    """The fast subclass of a decoder layer's class, of the same name: wrapping by class name finds it too."""
    # What is fused by hand gains nothing from tracing: under torch.compile each layer is one call between graphs.
    body = {"__module__": original.__module__, "forward": torch.compiler.disable(FastLayer.forward)}
    return type(original.__name__, (FastLayer, original), body)


def _refusal(layer: Any, fast: Fast, mask: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    if args or kwargs.get("output_attentions") or kwargs.get("position_embeddings") is None:
        return "attention weights or unusual arguments were asked for"
    if any(kwargs.get(name) is not None for name in CACHES):
        return "a key/value cache is kept (use_cache=False trains faster)"
    implementation = layer.self_attn.config._attn_implementation
    if implementation not in ("sdpa", PACKED):
        return f"attention implementation '{implementation}' was asked for"
    if mask is not None and not (isinstance(mask, torch.Tensor) and mask.ndim == 4):
        return "an attention mask of an unknown form"
    return _standing_refusal(fast)


def _standing_refusal(fast: Fast) -> str | None:
    """Why the layer runs its own forward, whatever it is called with; notices what has changed."""
    if any(part.__dict__["_forward_hooks"] or part.__dict__["_forward_pre_hooks"] for part in fast.parts):
        return "hooks on attention, MLP or a norm"
    if any(dropout.p and dropout.training for dropout in fast.dropouts):
        return "dropout on the residual path"
    for group in fast.groups():
        reason = group.refusal()
        if reason is not None:
            return reason
    return None


def state_of(layer: Any) -> list[Any] | None:
    """What the launches of a fast layer's training step depend on beside values and shapes; None: it runs its own."""
    fast: Fast = layer.hasten_fast
    if _standing_refusal(fast) is not None or layer.self_attn.attention_dropout:
        return None
    operands = [group.in_use for group in fast.groups()]
    return [*operands, fast.effective, layer.training, layer.self_attn.config._attn_implementation]


def run_layer(layer: Any, fast: Fast, hidden_BTD: torch.Tensor, mask: Any, kwargs: dict[str, Any]) -> torch.Tensor:
    """Both halves of a layer on one batch ``[B, T, D]``."""
    batch, tokens, width = hidden_BTD.shape
    device = hidden_BTD.device.type
    amp = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if amp else fast.attention.qkv.dtype
    cos, sin = (part.reshape(-1, part.shape[-1]) for part in kwargs["position_embeddings"])
    packed = layer.self_attn.config._attn_implementation == PACKED
    view = View(
        mask=None if packed else mask,
        cu_seq_lens=kwargs.get("cu_seq_lens_q") if packed else None,
        longest=kwargs.get("max_length_q"),
        scaling=layer.self_attn.scaling,
        window=fast.window if packed else None,
        dropout=layer.self_attn.attention_dropout if layer.training else 0.0,
    )
    policy, learning = fast.effective, torch.is_grad_enabled()

    def read(group: ProjectionGroup) -> Operand:
        operand = group.read(dtype)
        return operand if learning else operand.without_gradients()

    with torch.autocast(device, enabled=False):
        hidden = hidden_BTD.reshape(-1, width)
        attention = AttentionCall(read(fast.attention.qkv), read(fast.attention.out), cos, sin, view, batch=batch)
        mlp = MlpCall(read(fast.mlp.gate_up), read(fast.mlp.down))
        if len(hidden) > LONG and (policy in ("recompute", "offload") or not learning):
            both = WholeLayer(fast.attention, fast.mlp)
            hidden = _half(both, LayerCall(attention, mlp), "input", fast, hidden)
        else:
            hidden = _half(fast.attention, attention, attention_keeps(policy), fast, hidden)
            hidden = _half(fast.mlp, mlp, mlp_keeps(policy), fast, hidden)
    return hidden.view(batch, tokens, width)


def _half(half: Any, call: Any, keeps: Keeps, fast: Fast, hidden: torch.Tensor) -> torch.Tensor:
    learnt = half.learnt(call)
    if torch.is_grad_enabled() and (hidden.requires_grad or any(part.requires_grad for part in learnt)):
        offload = fast.offload if fast.effective == "offload" else None
        return HalfFunction.apply(half, call, keeps, offload, hidden, *learnt)  # type: ignore[no-any-return]
    with torch.no_grad():
        out, _ = half.forward(call, hidden, None)
    return out


class HalfFunction(torch.autograd.Function):
    """One half-layer as one node of the graph."""

    @staticmethod
    def forward(
        ctx: Any,
        half: Any,
        call: Any,
        keeps: Keeps,
        offload: Offload | None,
        hidden: torch.Tensor,
        *learnt: torch.Tensor,
    ) -> torch.Tensor:
        """Runs the half and keeps what `keeps` says."""
        ctx.half, ctx.call, ctx.keeps, ctx.used = half, call, keeps, False
        ctx.random = _random_state(hidden) if keeps == "input" and _draws(call) else None
        out, ctx.saved = half.forward(call, hidden, keeps)
        ctx.away = offload.put(hidden) if offload is not None else None
        ctx.save_for_backward(*(() if ctx.away is not None else (hidden,)))
        ctx.learnt = len(learnt)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: torch.Tensor) -> tuple[Any, ...]:
        """Gradients of the hidden states and of every parameter."""
        if ctx.used:
            raise RuntimeError(
                "a fast layer's memory is free after its backward: a second backward needs a second forward"
            )
        hidden = ctx.away.get() if ctx.away is not None else ctx.saved_tensors[0]
        half, call, saved = ctx.half, ctx.call, ctx.saved
        ctx.saved, ctx.used = None, True  # what was kept is freed as the backward walks back, not at its end
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            for operand, group in half.operands(call):
                group.rewrite(operand)
            if saved is None:
                with _replayed(hidden, ctx.random):
                    _, saved = half.forward(call, hidden, "all", output=False)
            dhidden, gradients = half.backward(call, saved, hidden, dout.contiguous(), ctx.needs_input_grad[4])
        assert len(gradients) == ctx.learnt
        return None, None, None, None, dhidden, *gradients


def _draws(call: Any) -> bool:
    view = getattr(call, "view", None)
    return view is not None and view.dropout > 0.0


def _random_state(hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(hidden.device) if hidden.is_cuda else None


@contextmanager
def _replayed(hidden: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor | None] | None) -> Iterator[None]:
    """The random numbers of the forward once more; the state is as found afterwards."""
    if state is None:
        yield
        return
    with torch.random.fork_rng(devices=[hidden.device] if hidden.is_cuda else []):
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1], hidden.device)
        yield
