"""What must be true after a verification run, each as one check with its rule.

Four rows fit any adapter: if their loss does not fall by half, something between the rows and the weights is broken
(masks, gradients, scale, kernels), whatever the speed looks like.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

SHARE = 0.5
"""Of the first step's loss, which the last steps' must be at or below."""
_LAST = 3
_INSTALLATION = {"kernels"}
"""Parts of the header whose fallbacks are the installation's. Those of other parts are the model's or the card's."""


@dataclass(frozen=True)
class Check:
    """One thing that must be so."""

    name: str
    passed: bool
    found: str
    rule: str

    def as_dict(self) -> dict[str, object]:
        """Plain values."""
        return asdict(self)


def learning_check(losses: Sequence[float], *, whole: bool = True) -> Check:
    """Whether the loss fell by half.

    Args:
        losses: of every step, each over the same rows.
        whole: whether all steps were made.
    """
    rule = f"the mean of the last {_LAST} steps is at most {SHARE:.0%} of the first step's"
    if not whole or not losses:
        return Check("learning", False, f"stopped after {len(losses)} steps", rule)
    first, tail = losses[0], losses[1:][-_LAST:]
    last = sum(tail) / len(tail) if tail else math.nan
    share = last / first if first else math.nan
    found = f"loss {first:.4f} -> {last:.4f}, {share:.0%} of it"
    return Check("learning", math.isfinite(last) and share <= SHARE, found, rule)


def adapter_check(folder: Path) -> Check:
    """Whether a saved adapter is finite, and none of its second factors is still zero.

    Args:
        folder: PEFT's, with ``adapter_model.safetensors``.
    """
    rule = "every value is finite, and every B has left zero"
    bad: list[str] = []
    zero: list[str] = []
    count = 0
    try:
        with safe_open(folder / "adapter_model.safetensors", "pt") as file:
            for name in file.keys():  # noqa: SIM118  (not a mapping)
                tensor = file.get_tensor(name)
                count += 1
                if not torch.isfinite(tensor).all():
                    bad.append(name)
                if "lora_B" in name and not tensor.any():
                    zero.append(name)
    except (OSError, SafetensorError) as cause:
        return Check("adapter", False, f"cannot be read: {cause}", rule)
    faults = [
        f"{len(names)} of {count} tensors {what} (first: {names[0]})"
        for names, what in ((bad, "not finite"), (zero, "zero"))
        if names
    ]
    if not count:
        faults = ["it is empty"]
    return Check("adapter", not faults, "; ".join(faults) or f"{count} tensors, finite and not zero", rule)


def reload_check(equal: bool | None) -> Check:
    """Whether a fresh process answered as the trained model did.

    Args:
        equal: what came out; None where there was no question to ask (a model without a chat template has none).
    """
    found = {True: "same answer", False: "another answer", None: "not compared: no held-out question"}[equal]
    rule = "the saved adapter, in a fresh process, answers as the trained model did"
    return Check("reload", equal is not False, found, rule)


def fallback_check(header: Sequence[Mapping[str, Any]]) -> Check:
    """Whether anything was slower than this machine and model allow, for a reason that an installation can mend.

    Args:
        header: decisions of the run's header, as plain values.
    """
    found = [_line(row) for row in header if row.get("fallback") and row.get("part") in _INSTALLATION]
    rule = "nothing fell back to a slower way that the installation should have"
    return Check("fallbacks", not found, "; ".join(found) or "none", rule)


def noted_fallbacks(header: Sequence[Mapping[str, Any]], at_work: Sequence[str] = ()) -> list[str]:
    """Slower ways that this model or this card asks for: to be known, not to be mended.

    Args:
        header: decisions of the run's header, as plain values.
        at_work: what training itself could not do fast.
    """
    found = [_line(row) for row in header if row.get("fallback") and row.get("part") not in _INSTALLATION]
    return [*found, *at_work]


def _line(row: Mapping[str, Any]) -> str:
    return f"{row.get('part')}: {row.get('choice')}: {row.get('why')}"
