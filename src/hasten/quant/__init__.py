"""Quantizing a model: NF4 chosen by measurement, so that the parts that matter keep their precision."""
