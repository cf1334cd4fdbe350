"""`use_gradient_checkpointing` as scripts know it, on the fast path.

    False       every layer keeps everything
    True        every layer is computed again in the backward
    "unsloth"   the same, and the layers' inputs wait in host memory (on devices that have memory of their own)
    "auto"      each layer keeps what memory allows

A model without a fast path gets transformers' own checkpointing for the last three.
"""

from __future__ import annotations

from typing import Any, Literal

from hasten.blocks.apply import apply, kept_values, set_policies, widths_of
from hasten.blocks.projections import Compute8
from hasten.compat.notes import say_once
from hasten.errors import ConfigError
from hasten.hardware.probe import free_bytes, probe
from hasten.lora.checkpointing import disable_checkpointing, enable_checkpointing
from hasten.plan import choose_activations, choose_turned, say_products

_ASKED: dict[bool | str, Literal["auto", "on", "off", "offload"]] = {
    True: "on",
    False: "off",
    "unsloth": "offload",
    "auto": "auto",
}
_ROWS = 2
"""Rows of the longest length that "auto" makes room for; a loader does not know the batch size."""


def make_fast(model: Any, wanted: bool | str, compute: str = "bf16") -> None:
    """Swap the fast modules in, and decide what each layer keeps.

    Args:
        model: a causal language model, or a `PeftModel` on one.
        wanted: the script's `use_gradient_checkpointing`.
        compute: ``"fp8"``: products in 8-bit floats, which this machine has.

    Raises:
        CapabilityError: copies in 8 bits would take nearly all memory that is free.
    """
    hardware = probe()
    compute8, copies = None, 0
    if compute == "fp8":
        values = kept_values(model)
        turned, asked = choose_turned(*values, free_bytes(hardware))
        compute8, copies = Compute8(turned=turned), values[2]
    applied = apply(model, compute8=compute8)
    if compute8 is not None:
        for said in say_products(asked, applied.layers, applied.of, applied.refused_8):
            say_once(f"products: {said.choice}: {said.why}")
    if not applied.complete:
        say_once(f"fast path: {applied.line()}")
    if not applied.layers:
        enable_checkpointing(model) if wanted else disable_checkpointing(model)
        return
    disable_checkpointing(model)
    policies, decision = choose_activations(
        hardware,
        asked=_ASKED[wanted],
        layers=applied.of,
        tokens=_ROWS * getattr(model, "max_seq_length", 2048),
        widths=widths_of(model),
        free_bytes=free_bytes(hardware) - copies,
        trained_bytes=sum(part.nbytes for part in model.parameters() if part.requires_grad),
        vocabulary=model.config.get_text_config().vocab_size,
    )
    set_policies(model, policies)
    if wanted in ("unsloth", "auto"):
        say_once(f"activations: {decision.choice}: {decision.why}")


def check_checkpointing(wanted: object) -> None:
    """Refuse anything but True, False, ``"unsloth"`` and ``"auto"``.

    Raises:
        ConfigError: naming the value.
    """
    if not isinstance(wanted, bool | str) or wanted not in _ASKED:
        rule = "It is True, False, 'unsloth' or 'auto'."
        raise ConfigError("use_gradient_checkpointing", repr(wanted), rule, "Use True.")
