"""How many CPU cores a control group (a container, a service) lets a process use: pure functions of text.

A quota is processor time per period, over all cores: `docker run --cpus 1.5` leaves every core in sight and stops the
process whenever it has used 150 of 100 milliseconds. More threads than that only wait. Rounded up: half a core that is
left idle costs more than one that is stopped half of the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from hasten.hardware.memory import GROUPS, OWN_GROUPS, levels, own_groups, text_of

_MOUNTS = (f"{GROUPS}/cpu", f"{GROUPS}/cpu,cpuacct")
"""Of version 1's controller: one name is often a link to the other."""
_DIGITS = 15
"""More than any figure of microseconds has: a mangled text's."""


def parse_max(text: str) -> float | None:
    """The cores in version 2's ``cpu.max``: quota and period, in microseconds; None: there is no limit."""
    words = text.split()
    return _cores(words[0], words[1]) if len(words) == 2 else None


def _cores(quota: str, period: str) -> float | None:
    amounts = [int(word) for word in (quota, period) if word.isdecimal() and word.isascii() and len(word) <= _DIGITS]
    return amounts[0] / amounts[1] if len(amounts) == 2 and all(amounts) else None


def quota_of(read: Callable[[str], str]) -> int | None:
    """Whole cores of the tightest quota on a process, of its control group or one around it; None: there is none.

    Args:
        read: the text of a file by its path; nothing where it is not there.
    """
    second, first = own_groups(read(OWN_GROUPS), "cpu")
    found: list[float | None] = []
    if second is not None:
        for mount in (GROUPS, f"{GROUPS}/unified"):
            found += [parse_max(read(f"{folder}/cpu.max")) for folder in levels(mount, second)]
    if first is not None:
        for folder in (folder for mount in _MOUNTS for folder in levels(mount, first)):
            words = (read(f"{folder}/cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
            found.append(_cores(*words))
    least = min((cores for cores in found if cores is not None), default=None)
    return None if least is None else max(1, math.ceil(least))


def read_quota() -> int | None:
    """Whole cores of the tightest quota on this process now."""
    return quota_of(text_of)
