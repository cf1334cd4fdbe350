"""Experts: a GGUF has one tensor for all of a layer, a checkpoint one matrix for each, the live model two for all.

    file (of E experts)                    checkpoint                              live
    blk.0.ffn_gate_exps   [E, I, H]        mlp.experts.0.gate_proj  [I, H]         mlp.experts.gate_up_proj [E, 2I, H]
    blk.0.ffn_up_exps     [E, I, H]        mlp.experts.0.up_proj    [I, H]         mlp.experts.down_proj    [E, H, I]
    blk.0.ffn_down_exps   [E, H, I]        mlp.experts.0.down_proj  [H, I], ...

The checkpoint's form is what every version of transformers, peft and vLLM reads. Files of early 2024 have a tensor for
each expert, too (``blk.0.ffn_gate.0``). How experts are chosen is the architecture's, and no field: fields that say
otherwise are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hasten.errors import ModelError
from hasten.loading.gguf_file import GgufFile

_MERGED = re.compile(r"^blk\.(\d+)\.ffn_(gate|up|down)_exps\.weight$")
_SPLIT = re.compile(r"^blk\.(\d+)\.ffn_(gate|up|down)\.(\d+)\.weight$")
_LIVE = re.compile(r"^(model\.layers\.\d+)\.mlp\.(.+)$")
_MOST = 4096
"""Experts of a layer: more than any model has, few enough that a name for each of them is nothing."""
_SOFTMAX = 1


@dataclass(frozen=True, kw_only=True)
class Experts:
    """Where an architecture's experts are in a checkpoint, and what llama.cpp takes for granted of them."""

    module: str = "mlp"
    """In a decoder layer; the live model's is always ``mlp``."""
    parts: Mapping[str, str]
    """An expert's matrices, the file's name -> the checkpoint's."""
    normed: bool
    """Whether the weights of the chosen experts are made to add up to one."""
    shared: bool = False
    """Whether there is an expert beside them that every position goes through."""


@dataclass(frozen=True)
class Place:
    """What experts a tensor holds."""

    layer: str
    part: str
    """``gate``, ``up`` or ``down``."""
    number: int | None
    """None: all of them."""

    def name(self, experts: Experts, number: int) -> str:
        """The checkpoint's name of one expert's matrix."""
        return f"model.layers.{self.layer}.{experts.module}.experts.{number}.{experts.parts[self.part]}.weight"


def place_of(name: str) -> Place | None:
    """What experts a tensor of the file holds; None: none."""
    if found := _MERGED.match(name):
        return Place(found[1], found[2], None)
    if found := _SPLIT.match(name):
        return Place(found[1], found[2], int(found[3]))
    return None


def as_stored(live: Mapping[str, tuple[int, ...]], experts: Experts) -> dict[str, tuple[int, ...]]:
    """The live model's shapes by the checkpoint's names, one for each expert.

    Args:
        live: of ``state_dict()``.
        experts: of the architecture.
    """
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in live.items():
        inside = _LIVE.match(name)
        if inside is None:
            found[name] = shape
            continue
        parts = {"experts.gate_up_proj": ("gate", "up"), "experts.down_proj": ("down",)}.get(inside[2])
        if parts is None:
            found[f"{inside[1]}.{experts.module}.{inside[2]}"] = shape
            continue
        for number in range(shape[0]):
            for part in parts:
                each = f"{inside[1]}.{experts.module}.experts.{number}.{experts.parts[part]}.weight"
                found[each] = (shape[1] // len(parts), *shape[2:])
    return found


def fields_of(file: GgufFile, experts: Experts) -> dict[str, Any]:
    """What a configuration says of experts: ``count``, ``used``, ``width`` and ``shared_width``.

    Raises:
        ModelError: experts that are chosen or weighed in another way than the architecture's, or impossible numbers.
    """
    count, used = file.size("expert_count", most=_MOST), file.size("expert_used_count", least=0)
    if not 1 <= used <= count:
        raise _refused(file, "expert_used_count", f"Of {count} experts, 1 to {count} are used.", "Download it again.")
    _require_usual(file, experts)
    feed_forward = file.size("feed_forward_length")
    return {
        "count": count,
        "used": used,
        "width": file.size("expert_feed_forward_length", feed_forward // used),  # as llama.cpp takes it
        "shared_width": file.size("expert_shared_feed_forward_length", feed_forward),
    }


def _require_usual(file: GgufFile, experts: Experts) -> None:
    """Every field of experts says what is so without it."""
    usual: dict[str, tuple[Any, ...]] = {
        "expert_gating_func": (0, _SOFTMAX),
        "expert_weights_norm": (experts.normed,),
        "expert_weights_scale": (0, 1),
        "expert_shared_count": (1,) if experts.shared else (0,),
        "expert_group_count": (0, 1),
        "expert_group_used_count": (0, 1),
        "leading_dense_block_count": (0,),
        "interleave_moe_layer_step": (0, 1),
        "moe_every_n_layers": (0, 1),
    }
    read = {"expert_count", "expert_used_count", "expert_feed_forward_length"}
    read |= {"expert_shared_feed_forward_length"} if experts.shared else set()
    for name, value in file.fields.items():
        key = name.removeprefix(f"{file.arch}.")
        if key == name or key in read or not ("expert" in key or key in usual):
            continue
        if value not in usual.get(key, (0,)):
            how = "norm" if experts.normed else "no norm"
            rule = f"Experts of {file.arch} are read as llama.cpp has them: by softmax, {how} of weights, no groups."
            raise _refused(file, key, rule, "Use the model's Hugging Face folder.")


def _refused(file: GgufFile, key: str, rule: str, remedy: str) -> ModelError:
    return ModelError(str(file.path), f"{file.arch}.{key} = {file.own(key)!r:.60}", rule, remedy)
