"""One file for each kind of source: how its rows are found, and read when they are asked for."""
