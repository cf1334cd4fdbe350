"""Which versions of other packages hasten was tested with.

The oldest comes from hasten's own metadata, the newest from the table below, which is moved up when the suite has
passed on newer ones. A newer release is no fault: it is one note.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping, Sequence

from hasten.hardware.texts import Version, version_of

NEWEST: dict[str, str] = {
    "torch": "2.13",
    "transformers": "5.24",
    "peft": "0.21",
    "accelerate": "1.15",
    "datasets": "5.2",
    "tokenizers": "0.23",
    "safetensors": "0.8",
    "huggingface_hub": "2.4",
    "gguf": "0.19",
    "trl": "1.16",
    "bitsandbytes": "0.50",
    "triton": "3.9",
}
"""The newest release that the whole suite passed with, by its first two numbers."""

NEEDED = ("torch", "transformers", "peft", "accelerate", "datasets", "safetensors", "tokenizers", "gguf")
"""Without these nothing trains; the others are for parts."""

PACKAGES = (*NEWEST, "numpy", "psutil")


def oldest(requirements: Sequence[str] | None = None) -> dict[str, Version]:
    """The oldest allowed version of each package.

    Args:
        requirements: lines as ``torch>=2.10`` or ``trl>=0.26; extra == "trl"``; None for hasten's own metadata.
    """
    lines = _own() if requirements is None else requirements
    found: dict[str, Version] = {}
    for line in lines:
        match = re.match(r"\s*([A-Za-z0-9._-]+)(?:\[[^\]]*\])?[^;]*?>=\s*([0-9][0-9.]*)", line)
        version = version_of(match[2]) if match else None
        if match and version:
            found.setdefault(match[1].lower().replace("-", "_"), version)
    return found


def newer_than_tested(installed: Mapping[str, str], tested: Mapping[str, str] = NEWEST) -> list[str]:
    """Of the installed packages those with a newer release than tested: ``trl 99.0 (tested up to 1.16)``.

    Patch releases are not newer. A version that has no two numbers in front says nothing and is left out.

    Args:
        installed: package -> version; empty where it is not there.
        tested: package -> newest.
    """
    pairs = ((name, version_of(installed.get(name, "")), version_of(last)) for name, last in tested.items())
    newer = [name for name, here, last in pairs if here and last and len(here) > 1 and here[:2] > last]
    return [f"{name} {installed[name]} (tested up to {tested[name]})" for name in newer]


def _own() -> Sequence[str]:
    try:
        return importlib.metadata.requires("hasten") or ()
    except importlib.metadata.PackageNotFoundError:  # a checkout that is used without being installed
        return ()
