"""The gated activation of an MLP: f(gate) times up; see README.md."""

from hasten.kernels.gated_activation.op import gated_activation

__all__ = ["gated_activation"]
