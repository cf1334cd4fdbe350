"""Dtypes as scripts give them: torch's objects or their names."""

from __future__ import annotations

from typing import Any

from hasten.errors import ConfigError, did_you_mean

NAMES = ("bfloat16", "float16", "float32")
_SHORT = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"}


def dtype_name(value: Any, argument: str = "dtype") -> str:
    """``"auto"`` for None, otherwise the name of a dtype that weights can have.

    Args:
        value: None, a `torch.dtype` or a name.
        argument: what it was given as, for the message.

    Raises:
        ConfigError: any other value, with the nearest name.
    """
    if value is None or value == "auto":
        return "auto"
    name = str(value).removeprefix("torch.")
    name = _SHORT.get(name, name)
    if name not in NAMES:
        remedy = did_you_mean(name, NAMES, "Leave it None: hasten chooses what the device computes best.")
        raise ConfigError(argument, repr(value), f"It is None or one of {', '.join(NAMES)}.", remedy)
    return name
