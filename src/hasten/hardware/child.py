"""A script, not a module: what is looked at in a process of its own, since it may crash, hang or print.

``python child.py torch`` prints one line of JSON behind a mark. It needs nothing of hasten. Whatever fails ends the
process with its traceback, which is what the parent keeps.
"""

from __future__ import annotations

import json
import sys
import warnings

MARK = "hasten-child: "
"""Before the one line that counts; libraries may print others."""


def torch_facts() -> dict[str, object]:
    """What `hasten.hardware.evidence.TorchFacts` holds."""
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
        devices = [_device(index) for index in range(torch.cuda.device_count())] if available else []
        archs = torch.cuda.get_arch_list()
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda or "",
        "hip": torch.version.hip or "",
        "archs": archs,
        "available": available,
        "devices": devices,
        "said": "\n".join(str(warning.message).strip() for warning in caught),
    }


def _device(index: int) -> dict[str, object]:
    import torch

    properties = torch.cuda.get_device_properties(index)
    try:
        free, _ = torch.cuda.mem_get_info(index)
    except RuntimeError:  # a card that others have to themselves: the rest is still true
        free = None
    return {
        "name": properties.name,
        "major": properties.major,
        "minor": properties.minor,
        "total_bytes": properties.total_memory,
        "free_bytes": free,
        "integrated": bool(getattr(properties, "is_integrated", False)),
    }


def four_bits() -> str:
    """64 values in 4 bits and back, on the device."""
    import bitsandbytes.functional as functional
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    values = torch.linspace(-1, 1, 64, device=device)
    codes, state = functional.quantize_4bit(values, blocksize=64, quant_type="nf4")
    back = functional.dequantize_4bit(codes, state)
    furthest = float((back - values).abs().max())
    return f"works on {device}" if furthest < 0.2 else f"wrong by {furthest} on {device}"  # noqa: PLR2004


def cpu_library() -> str:
    """The CPU library loaded without anything else of bitsandbytes."""
    import ctypes
    import importlib.util
    from pathlib import Path

    found = importlib.util.find_spec("bitsandbytes")
    (folder,) = found.submodule_search_locations  # pyright: ignore[reportOptionalMemberAccess,reportGeneralTypeIssues,reportOptionalIterable]
    library = next(iter(Path(folder).glob("libbitsandbytes_cpu.*")))
    ctypes.CDLL(str(library))
    return "loads on cpu"


if __name__ == "__main__":
    what = {"torch": torch_facts, "four-bits": four_bits, "cpu-library": cpu_library}[sys.argv[1]]
    print(f"\n{MARK}{json.dumps(what())}", flush=True)
