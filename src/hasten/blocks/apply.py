"""Putting the fast modules in a model's place, and taking them out again.

Classes are exchanged, nothing else: no function of another library changes, no parameter gets another name. The head's
and the layers' own forwards stay reachable, and run wherever the fast ones do not apply.

Composability: after PEFT has been attached, before DDP wraps. Weights that FSDP shards are gathered for one forward
only, so they are not joined: layers run their own forward and say so; the head's loss stays fused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from hasten.blocks.attention_half import AttentionHalf
from hasten.blocks.factors import FactorWriter
from hasten.blocks.head import FastCausalLM, FastHead, fast_causal_lm
from hasten.blocks.layer import Fast, FastLayer, fast_class, state_of
from hasten.blocks.mlp_half import MlpHalf
from hasten.blocks.norms import Norm
from hasten.blocks.offload import Offload
from hasten.blocks.projections import Compute8, ProjectionGroup, base_of, parts_of
from hasten.blocks.quantized import Workspace
from hasten.families.base import Blocks, family_of
from hasten.kernels.row_scaled.rows import RowScaled
from hasten.policies import Policy, Widths

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


@dataclass
class Applied:
    """What became fast and what did not."""

    layers: int = 0
    of: int = 0
    head: bool = False
    refused: Counter[str] = field(default_factory=Counter)
    """Why parts stay plain, and how many."""
    refused_8: Counter[str] = field(default_factory=Counter)
    """Why groups of projections keep 16-bit products although 8-bit ones were asked for, and how many."""

    @property
    def complete(self) -> bool:
        """Whether everything is fast."""
        return self.head and self.layers == self.of > 0

    @property
    def word(self) -> str:
        """`fast`, `partly fast` or `plain`."""
        return "fast" if self.complete else "partly fast" if self.layers or self.head else "plain"

    def line(self) -> str:
        """One sentence for the run header."""
        why = "; ".join(f"{count} x {reason}" for reason, count in self.refused.items())
        head = "fused loss" if self.head else "plain loss"
        return f"{self.layers} of {self.of} layers fast, {head}" + (f" ({why})" if why else "")


def base_model(model: Any) -> Any:
    """The transformers model under PEFT's wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def apply(model: Any, *, compute8: Compute8 | None = None, impl: str = "auto") -> Applied:
    """Make a model fast in place.

    Args:
        model: a transformers causal language model, or a `PeftModel` on one.
        compute8: products in 8-bit floats; copies of frozen weights are made now. None: in the weights' own dtype.
        impl: which kernels run: ``auto``, ``torch`` or ``triton``.

    Returns:
        What is fast now; layers keep everything until `set_policies` says otherwise. A family without a map of its
        layers stays as it is.
    """
    base = base_model(model)
    applied = Applied()
    family = family_of(base.config.model_type)
    if family.blocks is None:
        applied.refused[f"no fast path for '{base.config.model_type}' yet"] += 1
        return applied
    layers = list(_found(base.get_decoder(), family.blocks.layers))
    applied.of = len(layers)
    offload, workspace = Offload(), Workspace()
    for layer in layers:
        if isinstance(layer, FastLayer):
            applied.layers += 1
            continue
        fast = _fast(layer, base.config, family.blocks, workspace, compute8, impl)
        if isinstance(fast, str):
            applied.refused[fast] += 1
            continue
        fast.offload = offload
        _swap(layer, fast)
        applied.layers += 1
        if compute8 is not None:
            applied.refused_8.update(reason for group in fast.groups() if (reason := group.why_not_8()))
            for group in fast.groups():
                group.refusal()  # makes the 8-bit copies: what is free afterwards is free
    _apply_head(base, applied, impl)
    return applied


def set_policies(model: Any, policies: Sequence[Policy]) -> None:
    """What each fast layer keeps from now on.

    Args:
        model: a model that `apply` has made fast.
        policies: one per decoder layer, plain ones included.
    """
    base = base_model(model)
    blocks = family_of(base.config.model_type).blocks
    assert blocks is not None
    for layer, policy in zip(_found(base.get_decoder(), blocks.layers), policies, strict=True):
        if isinstance(layer, FastLayer):
            layer.hasten_fast.policy = policy


def widths_of(model: Any) -> Widths:
    """Widths of a decoder layer of a fast model."""
    base = base_model(model)
    fast = next(module.hasten_fast for module in base.modules() if isinstance(module, FastLayer))
    half = fast.attention
    return Widths(
        hidden=base.config.hidden_size,
        query=half.heads * half.head_width,
        key_value=half.key_value_heads * half.head_width,
        mlp=base_of(fast.mlp.down.modules[0]).in_features,
        item=half.qkv.dtype.itemsize,
    )


def kept_values(model: Any) -> tuple[int, int, int]:
    """How many values of projections the decoder's layers have: frozen in 16 bits, in 8-bit floats, and trained.

    Each takes a byte in an 8-bit copy.
    """
    base = base_model(model)
    blocks = family_of(base.config.model_type).blocks
    if blocks is None:
        return 0, 0, 0
    halves = (blocks.attention, (*blocks.qkv, blocks.out)), (blocks.mlp, (*blocks.gate_up, blocks.down))
    modules = [
        _found(_found(layer, parent), name)
        for layer in _found(base.get_decoder(), blocks.layers)
        for parent, names in halves
        for name in names
    ]
    parts = parts_of(modules)
    plain, trained = (
        sum(part.numel() for part in parts if isinstance(part, Tensor) and part.requires_grad == learnt)
        for learnt in (False, True)
    )
    return plain, sum(part.codes.numel() for part in parts if isinstance(part, RowScaled) and part.floats), trained


def remove(model: Any) -> None:
    """Put every module back as it was; weights get memory of their own again."""
    base = base_model(model)
    for module in list(base.modules()):
        if isinstance(module, FastLayer):
            fast = module.hasten_fast
            for group in fast.groups():
                group.release()
            module.__class__ = type(module).__mro__[2]
            del module.hasten_fast
            if fast.recompute:
                module.gradient_checkpointing = True
        elif type(module) is FastHead:
            module.__class__ = nn.Linear  # type: ignore[assignment]
    if isinstance(base, FastCausalLM):
        base.__class__ = type(base).__mro__[2]
        del base.hasten_factors


def refused_in_training(model: Any) -> set[str]:
    """Why layers have run their own forward in training so far; empty means all were fast."""
    reasons: set[str] = set()
    for module in base_model(model).modules():
        if isinstance(module, FastLayer):
            reasons |= module.hasten_fast.refused
    return reasons


def replay_state(model: Any) -> Callable[[], list[Any] | None]:
    """A look at everything that the launches of a fast model's training step depend on beside values and shapes.

    Args:
        model: a model that `apply` has made fast from end to end.

    Returns:
        A function that looks; it gives None where a layer would run its own forward.
    """
    base = base_model(model)
    layers = [module for module in base.modules() if isinstance(module, FastLayer)]
    ends = [base.get_input_embeddings(), base.get_output_embeddings()]

    def look() -> list[Any] | None:
        found: list[Any] = [end.weight.data_ptr() for end in ends]
        for layer in layers:
            own = state_of(layer)
            if own is None:
                return None
            found += own
        return found

    return look


def forget_offloaded(model: Any) -> None:
    """After a forward or backward that was broken off: nothing of it is on its way to host memory or back any more."""
    for module in base_model(model).modules():
        if isinstance(module, FastLayer):
            module.hasten_fast.offload.forget()


def gives_loss(model: Any) -> bool:
    """Whether the model's forward takes ``hasten_targets``."""
    return isinstance(base_model(model), FastCausalLM)


def _swap(layer: nn.Module, fast: Fast) -> None:
    # transformers sets this on the instance, where the class's property would never be asked.
    wanted = layer.__dict__.pop("gradient_checkpointing", False)
    layer.hasten_fast = fast  # type: ignore[assignment]
    layer.__class__ = fast_class(type(layer))
    fast.recompute = bool(wanted)


def _found(module: nn.Module, path: str) -> Any:
    return module.get_submodule(path)


def _fast(
    layer: nn.Module, config: Any, blocks: Blocks, workspace: Workspace, compute8: Compute8 | None, impl: str
) -> Fast | str:
    """The layer's halves, or why it has none."""

    def group(parent: nn.Module, *names: str) -> ProjectionGroup:
        return ProjectionGroup(tuple(_found(parent, name) for name in names), workspace, compute8, impl=impl)

    attention, mlp = _found(layer, blocks.attention), _found(layer, blocks.mlp)
    activation = _ACTIVATIONS.get(getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", ""))
    if activation is None:
        return "an activation without a kernel"
    head_width = int(attention.head_dim)
    before, between = (Norm(_found(layer, name), blocks.plus_one, impl) for name in blocks.norms)
    head_norms = None
    if blocks.head_norms:
        query, key = (Norm(_found(attention, name), blocks.plus_one, impl) for name in blocks.head_norms)
        head_norms = (query, key)
    fast = Fast(
        attention=AttentionHalf(
            norm=before,
            qkv=group(attention, *blocks.qkv),
            out=group(attention, blocks.out),
            heads=config.num_attention_heads,
            key_value_heads=config.num_key_value_heads,
            head_width=head_width,
            head_norms=head_norms,
            impl=impl,
        ),
        mlp=MlpHalf(
            norm=between,
            gate_up=group(mlp, *blocks.gate_up),
            down=group(mlp, blocks.down),
            activation=activation,
            impl=impl,
        ),
        window=_window(attention, config, blocks),
        parts=(attention, mlp, before.module, between.module),
        dropouts=tuple(child for child in layer.children() if isinstance(child, nn.Dropout)),
    )
    return next((reason for group in fast.groups() if (reason := group.why_not())), fast)


def _window(attention: Any, config: Any, blocks: Blocks) -> int | None:
    if blocks.window == "none":
        return None
    return getattr(config if blocks.window == "config" else attention, "sliding_window", None)


def _apply_head(base: Any, applied: Applied, impl: str) -> None:
    head = base.get_output_embeddings()
    if isinstance(base, FastCausalLM):
        applied.head = True
    elif type(head) is nn.Linear and type(head.weight) is nn.Parameter and not head._forward_hooks:
        head.__class__ = FastHead
        writer = FactorWriter(impl=impl)
        for module in base.modules():
            if isinstance(module, FastLayer):
                for group in module.hasten_fast.groups():
                    group.writer = writer
                    writer.groups.append(group)
        base.hasten_factors = writer
        base.__class__ = fast_causal_lm(type(base))
        applied.head = True
    else:
        kind = type(head).__name__ if type(head) is not nn.Linear else type(head.weight).__name__
        applied.refused[f"a head of type {kind}"] += 1
