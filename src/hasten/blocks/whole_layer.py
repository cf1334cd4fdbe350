"""Both halves of a decoder layer as one, for rows so long that the MLP is taken in parts.

    h' = attention half (h)        out = MLP half (h'), some positions after the others

Of a layer only h is kept, where the two halves on their own would keep h' too: the backward makes h' again along with
the attention, for one more product (W_o). And the MLP's wide values exist for one part at a time: while a layer's
backward runs, attention decides how much memory a token needs.

Parameter gradients are summed over the parts in float32 (float64 where that is computed in).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from hasten.blocks.attention import View
from hasten.blocks.attention_half import AttentionCall, AttentionHalf, AttentionSaved
from hasten.blocks.mlp_half import MlpCall, MlpHalf
from hasten.policies import PART, Keeps


@dataclass
class LayerCall:
    """One forward's inputs beside the hidden states."""

    attention: AttentionCall
    mlp: MlpCall

    @property
    def view(self) -> View:
        """Who sees whom."""
        return self.attention.view


@dataclass
class LayerSaved:
    """What the backward reads, made again in it."""

    between_MD: torch.Tensor
    """h'."""
    attention: AttentionSaved


@dataclass(frozen=True)
class WholeLayer:
    """A layer as one half-layer would be; see `AttentionHalf`."""

    attention: AttentionHalf
    mlp: MlpHalf

    def learnt(self, call: LayerCall) -> list[torch.Tensor]:
        """Every parameter that may have a gradient, in the order of `backward`."""
        return [*self.attention.learnt(call.attention), *self.mlp.learnt(call.mlp)]

    def operands(self, call: LayerCall) -> list[tuple[Any, Any]]:
        """Operands of this forward, and the groups that made them."""
        return [*self.attention.operands(call.attention), *self.mlp.operands(call.mlp)]

    def forward(
        self, call: LayerCall, h_MD: torch.Tensor, keeps: Keeps | None, *, output: bool = True
    ) -> tuple[torch.Tensor | None, LayerSaved | None]:
        """The layer's output, or what its backward reads.

        Args:
            call: this forward's inputs.
            h_MD: hidden states.
            keeps: ``input`` or None where the output is wanted; ``all`` in the backward.
            output: False in the backward.
        """
        between_MD, saved = self.attention.forward(call.attention, h_MD, None if output else keeps)
        assert between_MD is not None
        if not output:
            assert saved is not None
            return None, LayerSaved(between_MD, saved)
        for part_MD in between_MD.split(PART):
            made, _ = self.mlp.forward(call.mlp, part_MD, None)
            assert made is not None
            part_MD.copy_(made)
        return between_MD, None

    def backward(
        self, call: LayerCall, saved: LayerSaved, h_MD: torch.Tensor, dout_MD: torch.Tensor, need_dh: bool
    ) -> tuple[torch.Tensor | None, list[torch.Tensor | None]]:
        """``dh`` (None where it is not needed) and the gradients of `learnt`. What was saved is used up."""
        between_MD, dbetween_MD = saved.between_MD, torch.empty_like(saved.between_MD)
        sums: list[torch.Tensor | None] = [None] * len(self.mlp.learnt(call.mlp))
        for start in range(0, len(h_MD), PART):
            own = slice(start, start + PART)
            _, part = self.mlp.forward(call.mlp, between_MD[own], "all", output=False)
            assert part is not None
            dpart_MD, gradients = self.mlp.backward(call.mlp, part, between_MD[own], dout_MD[own], need_dh=True)
            assert dpart_MD is not None
            dbetween_MD[own] = dpart_MD
            for place, gradient in enumerate(gradients):
                if gradient is not None:
                    wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
                    before = sums[place]
                    sums[place] = wide if before is None else before.add_(wide)
        pairs = zip(sums, self.mlp.learnt(call.mlp), strict=True)
        own_mlp = [None if total is None else total.to(parameter.dtype) for total, parameter in pairs]
        del between_MD, saved.between_MD
        dh_MD, own_attention = self.attention.backward(call.attention, saved.attention, h_MD, dbetween_MD, need_dh)
        return dh_MD, [*own_attention, *own_mlp]
