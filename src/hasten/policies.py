"""What each decoder layer keeps for its backward, and which layers can afford what.

    keep           everything that was computed: no product and no element-wise work is done twice
    elementwise    norm outputs and the activation's product are made again from what they came from; products are not
    recompute_mlp  as `elementwise` in attention; of the MLP only its input is kept
    recompute      of both halves only the input is kept
    offload        as `recompute`, and the inputs wait in the computer's own memory

All of them give the same numbers: what is made again is made by the same kernels from the same values.

Micro-batches of more than `LONG` positions are computed a whole layer at a time where layers are recomputed
(`hasten.blocks.whole_layer`): one input is kept instead of two, and the MLP is taken in parts.

Bytes per token that one layer keeps (2-byte values, width D, attention width Q + 2 KV, MLP width I, adapters aside):

    keep           2 (2 D + (Q + 2 KV) + Q)  +  2 (2 D + 3 I)
    elementwise    2 (  D + (Q + 2 KV) + Q)  +  2 (  D + 2 I)
    recompute_mlp  2 (  D + (Q + 2 KV) + Q)  +  2 D
    recompute      2 D                       +  2 D
    offload        0
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Policy = Literal["keep", "elementwise", "recompute_mlp", "recompute", "offload"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
Keeps = Literal["all", "products", "input"]
"""What one half keeps: everything, what products gave, or its input alone."""


def attention_keeps(policy: Policy) -> Keeps:
    """What the attention half keeps under a policy."""
    return "all" if policy == "keep" else "products" if policy in ("elementwise", "recompute_mlp") else "input"


def mlp_keeps(policy: Policy) -> Keeps:
    """What the MLP half keeps under a policy."""
    return "all" if policy == "keep" else "products" if policy == "elementwise" else "input"


LONG = 65536
"""More positions than this are long."""
PART = 32768
"""Positions that the MLP of a long micro-batch takes at once."""


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Widths of one decoder layer, in values per token."""

    hidden: int
    query: int
    """Query heads times head width."""
    key_value: int
    """Key/value heads times head width."""
    mlp: int
    item: int = 2
    """Bytes of one value."""


def kept_bytes(policy: Policy, widths: Widths, tokens: int = 0) -> int:
    """Bytes per token that one layer keeps on the device, in micro-batches of so many tokens."""
    hidden, heads = widths.hidden, 2 * widths.query + 2 * widths.key_value
    attention = {"all": 2 * hidden + heads, "products": hidden + heads, "input": hidden}
    feed_forward = {"all": 2 * hidden + 3 * widths.mlp, "products": hidden + 2 * widths.mlp, "input": hidden}
    if policy == "offload":
        return 0
    if policy == "recompute" and tokens > LONG:
        return widths.item * hidden
    return widths.item * (attention[attention_keeps(policy)] + feed_forward[mlp_keeps(policy)])


def working_bytes(widths: Widths, tokens: int = 1) -> int:
    """Bytes that come and go while one layer's backward runs, whatever is kept.

    The widest moment is the MLP's: gate, up and their product made again, the gradient of the product, and the residual
    stream's gradient twice. Of a long micro-batch it is attention's: inputs and gradients of both halves, queries, keys
    and values with their gradients, its output with its gradient, and what its kernel adds up in float32.
    """
    if tokens <= LONG:
        return tokens * widths.item * (4 * widths.mlp + 4 * widths.hidden)
    attention = 6 * widths.hidden + 2 * (widths.query + 2 * widths.key_value) + 7 * widths.query
    return widths.item * (tokens * attention + 4 * PART * widths.mlp)


def choose_policies(layers: int, tokens: int, widths: Widths, free_bytes: int, *, offload: bool) -> tuple[Policy, ...]:
    """The dearest policies that fit: layers give up what costs least time per byte first.

    Every layer is moved one policy down before any is moved two. Recomputing element-wise work is almost free; products
    are not.

    Args:
        layers: decoder layers.
        tokens: most tokens of a micro-batch.
        widths: of one layer.
        free_bytes: device memory for activations.
        offload: whether inputs may wait in host memory, as the last resort.
    """
    room = free_bytes - working_bytes(widths, tokens)
    allowed: Sequence[Policy] = POLICIES if offload else POLICIES[:-1]
    per_layer = [tokens * kept_bytes(policy, widths, tokens) for policy in allowed]
    for step in range(len(allowed) - 1):
        dear, cheap = per_layer[step], per_layer[step + 1]
        if layers * dear <= room:
            return (allowed[step],) * layers
        if layers * cheap <= room:
            moved = -(-(layers * dear - room) // (dear - cheap))
            return (allowed[step + 1],) * moved + (allowed[step],) * (layers - moved)
    return (allowed[-1],) * layers
