"""Bytes of a model's weights as the loaders keep them.

plain   every value in the run's type
nf4     half a byte for each value of a linear layer; for each block of 64 a scale in 8 bits; for each 256 scales one in
        float32; for each layer, in float32, 16 codes, 256 of the scales, and an offset
int8    a byte for each value of a linear layer, a float32 for each output
fp8     the same

The embedding, the head and norms stay in the run's type in all of them; so do experts that are kept in one tensor,
which are no linear layers. A checkpoint that is published in 8-bit floats has its own scales, a float32 for each output
or each block. (A weight that has one scale for all is read as one with the same scale for each output.)
"""

from __future__ import annotations

from hasten.estimate.facts import Facts, Weight
from hasten.loading.published import Published
from hasten.storage import Storage

BLOCK, GROUP = 64, 256
"""Values that share a scale in NF4, and scales that share one of their own."""
_TABLES = 4 * (16 + 256 + 1)
"""Bytes of codes and offset of one layer."""


def weight_bytes(facts: Facts, storage: Storage, item: int) -> dict[str, int]:
    """Bytes by part: linear layers, experts, and the rest.

    Args:
        facts: the model.
        storage: of its linear layers.
        item: bytes of one value of the run's type.
    """
    found = {"linear layers": 0, "experts": 0, "embedding, head, norms": 0}
    for weight in facts.weights:
        part = "linear layers" if weight.linear else "experts" if weight.expert else "embedding, head, norms"
        found[part] += _bytes(weight, storage, item, None if facts.widened else facts.layout)
    return {part: amount for part, amount in found.items() if amount}


def _bytes(weight: Weight, storage: Storage, item: int, layout: Published | None) -> int:
    if weight.exact:
        return 4 * weight.values
    if not weight.linear:
        return item * weight.values
    outputs, inputs = weight.shape
    if layout is not None:
        rows, columns = layout.blocks or (1, inputs)
        return weight.values + 4 * -(-outputs // rows) * -(-inputs // columns)
    if storage == "nf4":
        blocks = -(-weight.values // BLOCK)
        return -(-weight.values // 2) + blocks + 4 * -(-blocks // GROUP) + _TABLES
    if storage in ("int8", "fp8"):
        return weight.values + 4 * outputs
    return item * weight.values
