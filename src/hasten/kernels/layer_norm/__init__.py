"""Layer normalisation, with the residual addition before it; see README.md."""

from hasten.kernels.layer_norm.op import layer_norm

__all__ = ["layer_norm"]
