"""Reading back what was written, by other code than wrote it, and comparing it with what was meant."""
