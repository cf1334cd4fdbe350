"""The specification of token_logprobs in plain torch, with all logits at once. N positions, D width, V vocabulary."""

from __future__ import annotations

import torch

from hasten.kernels.choice import accumulation_dtype


def token_logprobs(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    target_N: torch.Tensor,
    bias_V: torch.Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    temperature: float = 1.0,
    ignore_index: int = -100,
) -> torch.Tensor:
    """Log-probability of each target, 0 where it is ignored."""
    logits = torch.nn.functional.linear(hidden_ND, weight_VD, bias_V)
    z = logits.to(accumulation_dtype(logits.dtype)) * logit_scale
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    ignored = target_N == ignore_index
    log_p = torch.log_softmax(z / temperature, -1).gather(1, target_N.masked_fill(ignored, 0).unsqueeze(-1))
    return log_p.squeeze(-1).masked_fill(ignored, 0.0)
