"""Rotary position embedding of query and key heads; see README.md."""

from hasten.kernels.rope.op import rope

__all__ = ["rope"]
