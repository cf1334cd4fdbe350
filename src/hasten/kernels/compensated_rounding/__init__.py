"""Rounding to 4-bit levels in which later columns make up for earlier ones; see README.md."""
