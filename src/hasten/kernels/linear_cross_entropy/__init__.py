"""The cross entropy of a language model's head without its logits in memory; see README.md."""

from hasten.kernels.linear_cross_entropy.op import linear_cross_entropy

__all__ = ["linear_cross_entropy"]
