"""The card's clock and power while something runs, as nvidia-smi tells them ten times a second."""

from __future__ import annotations

import shutil
import statistics
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

QUERY = ("nvidia-smi", "--query-gpu=clocks.sm,power.draw,clocks.max.sm,power.limit", "--format=csv,noheader,nounits")


@contextmanager
def watched(found: dict[str, float]) -> Iterator[None]:
    """Fills `found` at the end: means of clock (MHz) and power (W), their limits, how many readings.

    Nothing is filled in where there is no nvidia-smi.
    """
    if shutil.which(QUERY[0]) is None:
        yield
        return
    process = subprocess.Popen([*QUERY, "-lms", "100"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        yield
    finally:
        process.terminate()
        text, _ = process.communicate()
    lines = [line.split(",") for line in text.splitlines()]
    readings = [[float(value) for value in line] for line in lines if len(line) == 4 and "[" not in "".join(line)]
    if readings:
        clock, power, *limits = (statistics.mean(values) for values in zip(*readings, strict=True))
        found |= {"clock_mhz": clock, "power_w": power, "clock_limit_mhz": limits[0], "power_limit_w": limits[1]}
        found["readings"] = len(readings)
