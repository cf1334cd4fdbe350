"""What a script's own arguments become where a GPU has the machine's memory."""

import dataclasses
from types import SimpleNamespace

import pytest

from hasten.hardware.probe import Hardware

pytest.importorskip("trl", reason="scripts' arguments are trl's")

CARD = Hardware(device="cuda:0", name="Card", total_bytes=80 << 30, cores=1, bf16=True)


@pytest.mark.parametrize(
    ("optim", "becomes"),
    [
        ("paged_adamw_8bit", "adamw_8bit"),
        ("paged_adamw_32bit", "adamw_torch"),
        ("paged_lion_8bit", "lion_8bit"),
        ("paged_lion_32bit", "lion_32bit"),
        ("paged_ademamix_32bit", "ademamix"),
        ("adamw_8bit", None),
    ],
)
def test_nothing_is_pinned_or_paged(optim, becomes, monkeypatch):
    from transformers.training_args import OptimizerNames

    from hasten.compat import trainer

    args = SimpleNamespace(optim=OptimizerNames(optim))
    monkeypatch.setattr(trainer, "probe", lambda: CARD)
    assert trainer._on_shared_memory(args) == {}
    monkeypatch.setattr(trainer, "probe", lambda: dataclasses.replace(CARD, unified_memory=True))
    changes = trainer._on_shared_memory(args)
    assert changes.pop("dataloader_pin_memory") is False
    assert changes.get("optim") == becomes
    if becomes:
        OptimizerNames(becomes)
