"""4-bit weights (NF4) back to 16 bit; see README.md."""
