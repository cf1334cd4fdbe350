"""How much of an adapter survives when it is merged into 4-bit weights.

A weight in 4 bits moves in steps. Added to the 4-bit weight W4 itself, which lies on a step, an update D that is small
beside them rounds back to where it was. Added to the 16-bit weight W that W4 was made from, which lies anywhere between
two steps, it moves some weights by a whole step and others not at all, and on average arrives:

    share = <Q(W + D) - W4, D> / <D, D>

1 where all of the update arrives, 0 where none does.

Of an adapter that began as what 4 bits lost, s B0 A0 (`hasten.lora.loftq`), D is what it learnt since. It is added to
W, or to W4 + s B0 A0; there Q(W4 + s B0 A0) takes the place of W4 above.
"""

from __future__ import annotations

from typing import Any

from hasten.loading.beginning import added_at_first, beginning_of
from hasten.lora.originals import Originals


def surviving_share(model: Any, originals: Originals | None, dtype: Any) -> float:
    """The share over all adapted 4-bit weights, each counted by the size of its update.

    Args:
        model: a `PeftModel` with LoRA on 4-bit weights.
        originals: what the update is added to before it is rounded; None: the 4-bit weights' own values.
        dtype: of the sums that are rounded.

    Returns:
        The share; 1.0 where no 4-bit weight is adapted.
    """
    import torch

    arrived = sent = 0.0
    began = beginning_of(model)
    with torch.no_grad():
        for name, module in model.get_base_model().named_modules():
            weight: Any = getattr(getattr(module, "base_layer", None), "weight", None)
            if getattr(weight, "quant_state", None) is None or not hasattr(module, "lora_A"):
                continue
            adapters = [one for one in module.active_adapters if one in module.lora_A]
            if not adapters:
                continue
            from bitsandbytes.functional import dequantize_4bit

            kept = dequantize_4bit(weight.data, weight.quant_state).float()
            update = torch.stack([module.get_delta_weight(one).float() for one in adapters]).sum(0)
            whole = kept if originals is None else originals.weight(f"{name}.weight", kept)
            start, still = whole.float(), kept
            before = added_at_first(began, name, module)
            if before is not None:
                update = update - before
                if whole is kept:
                    start = kept + before
                    still = _rounded(start, dtype)
            moved = _rounded(start + update, dtype) - still
            arrived += float((moved * update).sum())
            sent += float((update * update).sum())
    return arrived / sent if sent else 1.0


def _rounded(values: Any, dtype: Any) -> Any:
    """As a loader quantizes: NF4 in blocks of 64, whatever the weight had."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    codes, state = quantize_4bit(values.to(dtype), compress_statistics=True, quant_type="nf4")
    return dequantize_4bit(codes, state).float()
