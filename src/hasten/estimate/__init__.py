"""What a run will need, from a model's configuration alone; nothing is loaded."""
