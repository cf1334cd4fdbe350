"""`use_gradient_checkpointing` as scripts know it, on the fast path.

    False       every layer keeps everything
    True        every layer is computed again in the backward
    "unsloth"   the same, and the layers' inputs wait in host memory (on devices that have memory of their own)
    "auto"      each layer keeps what memory allows

A model without a fast path gets transformers' own checkpointing for the last three.
"""

from __future__ import annotations

from typing import Any

from hasten.blocks.apply import apply, set_policies, widths_of
from hasten.compat.notes import say_once
from hasten.errors import ConfigError
from hasten.hardware.probe import Hardware, free_bytes, probe
from hasten.lora.checkpointing import disable_checkpointing, enable_checkpointing
from hasten.plan import activation_room
from hasten.policies import Policy, choose_policies

_WANTED = (True, False, "unsloth", "auto")
_ROWS = 2
"""Rows of the longest length that "auto" makes room for; a loader does not know the batch size."""


def make_fast(model: Any, wanted: bool | str) -> None:
    """Swap the fast modules in, and decide what each layer keeps.

    Args:
        model: a causal language model, or a `PeftModel` on one.
        wanted: the script's `use_gradient_checkpointing`.
    """
    applied = apply(model)
    if not applied.complete:
        say_once(f"fast path: {applied.line()}")
    if not applied.layers:
        enable_checkpointing(model) if wanted else disable_checkpointing(model)
        return
    disable_checkpointing(model)
    set_policies(model, _policies(model, applied.of, wanted, probe()))


def _policies(model: Any, layers: int, wanted: bool | str, hardware: Hardware) -> tuple[Policy, ...]:
    discrete = hardware.is_cuda and not hardware.unified_memory
    if wanted == "auto":
        trained = sum(part.nbytes for part in model.parameters() if part.requires_grad)
        tokens = _ROWS * getattr(model, "max_seq_length", 2048)
        widths, vocabulary = widths_of(model), model.config.get_text_config().vocab_size
        room = activation_room(hardware, free_bytes(hardware), trained, tokens * vocabulary * widths.item)
        return choose_policies(layers, tokens, widths, room, offload=discrete)
    if wanted == "unsloth":
        return ("offload" if discrete else "recompute",) * layers
    return ("recompute" if wanted else "keep",) * layers


def check_checkpointing(wanted: object) -> None:
    """Refuse anything but True, False, ``"unsloth"`` and ``"auto"``.

    Raises:
        ConfigError: naming the value.
    """
    if wanted not in _WANTED or wanted in (0, 1) and not isinstance(wanted, bool):
        rule = "It is True, False, 'unsloth' or 'auto'."
        raise ConfigError("use_gradient_checkpointing", repr(wanted), rule, "Use True.")
