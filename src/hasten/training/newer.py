"""One note about releases that came out after hasten was last tested: they are no fault, and may be one's cause."""

from __future__ import annotations

import re
from collections.abc import Mapping

from hasten.hardware.tested import NEWEST


def newer_than_tested(installed: Mapping[str, str], tested: Mapping[str, str] = NEWEST) -> dict[str, str]:
    """Of the installed packages those with a newer release than tested -> ``99.0 (tested: 1.16)``.

    A version that has no two numbers in front says nothing and is left out.
    """
    found = {}
    for package, last in tested.items():
        here, known = _first_two(installed.get(package, "")), _first_two(last)
        if here and known and here > known:
            found[package] = f"{installed[package]} (tested: {last})"
    return found


def note(installed: Mapping[str, str], tested: Mapping[str, str] = NEWEST) -> str:
    """The line of a run's header; empty where nothing is newer than tested."""
    newer = newer_than_tested(installed, tested)
    return ", ".join(f"{package} {said}" for package, said in newer.items())


def _first_two(version: str) -> tuple[int, int] | None:
    match = re.match(r"v?(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else None
