"""Operators with hand-derived gradients: one folder each, with a derivation, a plain torch twin and Triton kernels."""
