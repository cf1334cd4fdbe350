"""Frozen weights in 8 bits with a scale per row, back to 16 bit; see README.md."""
