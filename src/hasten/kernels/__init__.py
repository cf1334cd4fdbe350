"""Operators with a plain-torch twin: one folder each (`reference.py`, `triton.py`, `op.py`, `README.md`)."""
