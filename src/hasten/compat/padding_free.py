"""Batches without padding for trl's trainer: documents end to end in one row, kept apart in attention.

The script's collator makes a padded batch as ever; whatever its mask leaves out is left out here. Losses and gradients
are those of the padded batch: the first label of each document is never learnt, and attention gets the boundaries
(`hasten.blocks.packed_attention`). Only where a test proves that a family keeps documents apart, and only in training:
transformers weighs evaluation losses by rows.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from hasten.blocks.packed_attention import packed_attention
from hasten.compat.notes import say_once
from hasten.data.packing import Example, PackedCollator
from hasten.families.base import family_of

BOUNDARIES = "cu_seq_lens_q"
_KNOWN = {"input_ids", "attention_mask", "labels"}


class PaddingFree:
    """A collator whose padded batches become one row each.

    Args:
        padded: the script's collator. A batch that holds more than ids, mask and labels stays as it is.
    """

    def __init__(self, padded: Callable[[Any], Any]) -> None:
        self.padded, self.packed = padded, PackedCollator(plain=True)

    def __call__(self, examples: Any) -> Any:
        """One batch: what `PackedCollator` makes, or the padded one."""
        batch = self.padded(examples)
        if set(batch) != _KNOWN or batch["attention_mask"].ndim != 2:
            say_once(f"rows stay padded: the collator's batches hold {', '.join(sorted(batch))}")
            return batch
        columns = (batch["input_ids"].numpy(), batch["labels"].numpy(), batch["attention_mask"].numpy().astype(bool))
        rows = [
            Example(input_ids=ids[real], labels=labels[real])
            for ids, labels, real in zip(*columns, strict=True)
            if real.any()
        ]
        return self.packed(rows)


def why_padded(trainer: Any, given: bool | None, own_loss: bool) -> str:
    """Why a trainer's rows stay padded; empty: they need not.

    Args:
        trainer: trl's, constructed.
        given: what the script said of `padding_free`; None is nothing.
        own_loss: whether the script computes the loss itself.
    """
    args, model = trainer.args, trainer.model
    model_type = model.config.get_text_config().model_type
    peft = getattr(model, "active_peft_config", None)
    if given is not None or args.packing:
        return "the script decides"
    if own_loss:
        return "the script computes its own loss"
    if not family_of(model_type).supports("packing"):
        return f"packing is not proven for model type '{model_type}'"
    if args.neftune_noise_alpha:
        return "NEFTune's noise depends on a row's length"
    if getattr(peft, "is_prompt_learning", False):
        return "a learnt prompt stands before every row"
    return ""


def reading(model: Any, inputs: dict[str, Any]) -> AbstractContextManager[None]:
    """The context in which a model reads these inputs."""
    proven = family_of(model.config.get_text_config().model_type).supports("packing")
    return packed_attention(model) if BOUNDARIES in inputs and proven else nullcontext()
