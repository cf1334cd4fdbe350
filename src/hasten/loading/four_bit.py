"""What bitsandbytes does wrong with 4-bit weights on a CPU, kept from happening or refused.

Both with bitsandbytes 0.50: it repacks a layer at its first evaluation on processors with AVX512-BF16, and the repacked
product has no gradient; and it reads weights wrongly whose rows are not whole blocks.
"""

from __future__ import annotations

from typing import Any

from hasten.errors import CapabilityError


def keep_trainable(model: Any) -> None:
    """Keep 4-bit layers on a CPU in the layout that has a backward: each carries its own switch.

    Training after an evaluation would go on with wrong numbers.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def require_read_right(model: Any) -> None:
    """Refuse a model whose 4-bit weights bitsandbytes reads otherwise than they are stored.

    One layer of each row length is read both ways.

    Raises:
        CapabilityError: naming the first such layer.
    """
    import torch

    from hasten.kernels.nf4.op import dequantize
    from hasten.kernels.nf4.packed import packed_of

    looked_at: set[int] = set()
    for name, module in model.named_modules():
        packed = packed_of(getattr(module, "weight", None))
        if packed is None or packed.codes.device.type != "cpu" or packed.shape[1] in looked_at:
            continue
        looked_at.add(packed.shape[1])
        if packed.shape[1] % packed.blocksize == 0:
            continue
        from bitsandbytes.functional import dequantize_4bit

        own = torch.empty(packed.shape)
        dequantize(packed, own)
        theirs = dequantize_4bit(module.weight.data, module.weight.quant_state).float()
        if (theirs - own).norm() > 0.01 * own.norm():
            raise CapabilityError(
                name,
                f"rows of {packed.shape[1]} values in 4-bit blocks of {packed.blocksize}",
                "bitsandbytes reads 4-bit rows that are not whole blocks wrongly on a CPU.",
                "Load the model without load_in_4bit, or on a GPU.",
            )


def in_nf4(module: Any) -> bool:
    """Whether a module's weight is kept in bitsandbytes' NF4."""
    state = getattr(getattr(module, "weight", None), "quant_state", None)
    return state is not None and state.quant_type == "nf4"
