"""Products in 8-bit floats: rows quantized with one scale each."""
