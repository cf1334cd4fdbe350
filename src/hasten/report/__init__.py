"""Showing a run: lines and plots for the terminal, one page for the browser.

It reads runs through `hasten.runs` alone, so that a picture of a run never differs from its folder.
"""
