"""The language model's head, whose forward can give the loss instead of the logits.

Head and loss are one module: where its weight is sharded, the weight is there while its forward runs, and the loss is
computed in that forward (`hasten.kernels.linear_cross_entropy`). Without targets it is the linear layer it was.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache, wraps
from typing import Any

import torch
from torch import nn

from hasten.blocks.factors import FactorWriter
from hasten.blocks.layer import CACHES
from hasten.kernels.linear_cross_entropy import linear_cross_entropy


class FastHead(nn.Linear):
    """A head that knows the loss."""

    def forward(
        self,
        input: torch.Tensor,
        targets: torch.Tensor | None = None,
        **options: Any,  # noqa: A002  # torch's name
    ) -> torch.Tensor:
        """Logits; or, with targets, the summed negative log-likelihood.

        Args:
            input: hidden states ``[..., D]``.
            targets: int64, one per hidden state, -100 where nothing is learnt; None asks for logits.
            **options: of `linear_cross_entropy`.
        """
        if targets is None:
            return super().forward(input)
        hidden = input.reshape(-1, input.shape[-1])
        device = hidden.device.type
        if torch.is_autocast_enabled(device):
            hidden = hidden.to(torch.get_autocast_dtype(device))
        weight = self.weight.to(hidden.dtype)
        bias = None if self.bias is None else self.bias.to(hidden.dtype)
        return linear_cross_entropy(hidden, weight, targets.reshape(-1), bias=bias, **options)


class FastCausalLM(nn.Module):
    """Mixed into a causal language model's class: with ``hasten_targets`` its forward gives the loss alone."""

    hasten_factors: FactorWriter


@cache
def fast_causal_lm(original: type[nn.Module]) -> type[nn.Module]:
    """The subclass of a causal language model's class that can give the loss.

    Its forward takes one more keyword, ``hasten_targets``: int64 ``[K]``, the targets of the positions that
    ``logits_to_keep`` names. Then the output's loss is their summed negative log-likelihood, and there are no logits.
    Its signature is the original's: trainers and `generate` read it.
    """

    @wraps(original.forward)
    def forward(self: Any, *args: Any, hasten_targets: torch.Tensor | None = None, **kwargs: Any) -> Any:
        cached = any(kwargs.get(name) is not None for name in CACHES)  # generating: layers run their own forward
        with nullcontext() if cached else self.hasten_factors.forward():
            if hasten_targets is None:
                return original.forward(self, *args, **kwargs)
            keep = kwargs.pop("logits_to_keep")
            outputs = self.get_decoder()(*args, **{**kwargs, "use_cache": False})
        from transformers.modeling_outputs import CausalLMOutputWithPast

        return CausalLMOutputWithPast(
            loss=self.get_output_embeddings()(outputs.last_hidden_state[:, keep], hasten_targets)
        )

    return type(original.__name__, (FastCausalLM, original), {"__module__": original.__module__, "forward": forward})
