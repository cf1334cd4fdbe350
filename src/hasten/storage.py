"""How frozen weights are kept in memory.

plain   in 16 bits (on CPUs: 32)
nf4     4-bit normal floats in blocks of 64, scales in 8 bits (bitsandbytes)
int8    whole numbers of 8 bits, one scale per output (bitsandbytes)
fp8     8-bit floats (e4m3), one scale per output: what 8-bit products take as they are
"""

from __future__ import annotations

from typing import Literal

from hasten.errors import ConfigError

Storage = Literal["plain", "nf4", "int8", "fp8"]
SAID: dict[Storage, str] = {
    "nf4": "4-bit storage was asked for",
    "int8": "8-bit storage was asked for; whole numbers, one scale per output",
    "fp8": "8-bit storage was asked for; floats",
}
"""Why a run's header says so."""


def asked_storage(
    *, load_in_4bit: bool = False, load_in_8bit: bool = False, load_in_fp8: bool = False, load_in_16bit: bool = False
) -> Storage:
    """The one that was asked for.

    Raises:
        ConfigError: more than one was.
    """
    asked = {"load_in_4bit": load_in_4bit, "load_in_8bit": load_in_8bit, "load_in_fp8": load_in_fp8}
    asked["load_in_16bit"] = load_in_16bit
    named = [name for name, given in asked.items() if given]
    if len(named) > 1:
        raise ConfigError(named[0], f"True, as is {named[1]}", "Weights are kept in one way.", "Set one of them.")
    return "nf4" if load_in_4bit else "int8" if load_in_8bit else "fp8" if load_in_fp8 else "plain"
