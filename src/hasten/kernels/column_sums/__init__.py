"""Partial sums of programs added up; see README.md."""
