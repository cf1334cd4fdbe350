"""How much of an adapter survives when it is merged into 4-bit weights.

A weight in 4 bits moves in steps. Added to the 4-bit weight W4 itself, which lies on a step, an update D that is small
beside them rounds back to where it was. Added to the 16-bit weight W that W4 was made from, which lies anywhere between
two steps, it moves some weights by a whole step and others not at all, and on average arrives:

    share = <Q(W + D) - W4, D> / <D, D>

1 where all of the update arrives, 0 where none does.
"""

from __future__ import annotations

from typing import Any

from hasten.lora.originals import Originals


def surviving_share(model: Any, originals: Originals | None = None) -> float:
    """The share over all adapted 4-bit weights, each counted by the size of its update.

    Args:
        model: a `PeftModel` with LoRA on 4-bit weights.
        originals: what the update is added to before it is rounded; None: the 4-bit weights' own values.

    Returns:
        The share; 1.0 where no 4-bit weight is adapted.
    """
    import torch

    from hasten.kernels.nf4.op import dequantize
    from hasten.kernels.nf4.packed import packed_of
    from hasten.quant import nf4

    arrived = sent = 0.0
    with torch.no_grad():
        for name, module in model.get_base_model().named_modules():
            packed = packed_of(getattr(getattr(module, "base_layer", None), "weight", None))
            if packed is None or not hasattr(module, "lora_A"):
                continue
            adapters = [one for one in module.active_adapters if one in module.lora_A]
            if not adapters:
                continue
            kept = torch.empty(packed.shape, dtype=torch.float32, device=packed.codes.device)
            dequantize(packed, kept)
            update = torch.stack([module.get_delta_weight(one).float() for one in adapters]).sum(0)
            start = kept if originals is None else originals.weight(f"{name}.weight", kept).float()
            moved = nf4.plain(start + update, packed.blocksize).values() - kept
            arrived += float((moved * update).sum())
            sent += float((update * update).sum())
    return arrived / sent if sent else 1.0
