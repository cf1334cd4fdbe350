"""Root mean square normalisation, with the residual addition before it; see README.md."""

from hasten.kernels.rms_norm.op import rms_norm

__all__ = ["rms_norm"]
