"""Log-probabilities of given tokens under a language model's head without its logits in memory; see README.md."""

from hasten.kernels.token_logprobs.op import token_logprobs

__all__ = ["token_logprobs"]
