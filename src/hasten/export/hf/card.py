"""The README.md beside exported weights: what they are, and the facts of the run that made them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hasten
from hasten.export.hf.base import Opened
from hasten.loading.ollama_store import is_manifest, name_of
from hasten.loading.source import Source

_DEMO = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""What the embedded model is called where others find it."""


def portable_name(opened: Opened) -> str | None:
    """How others find the base: a hub id; None for what is only on this computer."""
    if opened.base_name == "demo":
        return _DEMO
    return None if Path(opened.base_name).is_absolute() else opened.base_name


def model_card(opened: Opened, kept: str, notes: list[str]) -> str:
    """The text, in Markdown with the block of metadata that hubs read.

    Args:
        opened: what was exported.
        kept: how weights are kept, e.g. ``"bfloat16"``.
        notes: what is not as in the base.
    """
    name = portable_name(opened)
    head = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    head += [f"base_model: {json.dumps(name)}"] if name else []
    head += ["tags:", "- hasten", "---"]
    path = Source("folder", opened.base_name).path
    shown = name or (name_of(path) if is_manifest(path) else path.name)
    what = f"Fine-tuned from {shown} with LoRA; the adapter is merged in." if opened.adapter else f"A copy of {shown}."
    facts = {"Base": shown + (f", revision {opened.revision}" if opened.revision else ""), "Weights": kept}
    facts |= _run_facts(opened) | {"Written by": f"hasten {hasten.__version__}"}
    table = ["| | |", "| --- | --- |", *(f"| {key} | {_cell(value)} |" for key, value in facts.items())]
    listed = ["", *(f"- {note}" for note in notes)] if notes else []
    return "\n".join([*head, "", f"# {_title(opened, shown)}", "", what, "", *table, *listed, ""])


def _title(opened: Opened, shown: str) -> str:
    return opened.run.name if opened.run is not None else shown.rpartition("/")[2]


def _run_facts(opened: Opened) -> dict[str, Any]:
    if opened.run is None:
        return {}
    record, result = opened.run.record(), _result(opened)
    config: dict[str, Any] = record.get("config") or {}
    data, lora, training = (config.get(part) or {} for part in ("data", "lora", "training"))
    rows = record.get("data") or {}
    source = data.get("source")
    facts: dict[str, Any] = {
        "Rows": _and(_names(source), rows.get("kept") and f"{rows['kept']} rows"),
        "LoRA": _and(lora.get("r") and f"rank {lora['r']}", lora.get("alpha") and f"alpha {lora['alpha']:g}"),
        "Steps": result.get("steps"),
        "Learning rate": training.get("learning_rate"),
        "Loss": _span(result.get("losses")),
        "Held-out loss": _span([result.get("heldout_loss_before"), result.get("heldout_loss_after")]),
        "Run": record.get("created"),
    }
    return {key: value for key, value in facts.items() if value not in (None, "")}


def _result(opened: Opened) -> dict[str, Any]:
    assert opened.run is not None, "asked for where there is one"
    return opened.run.result() or {}


def _names(source: Any) -> str:
    """Where rows came from, without the folders of this computer."""
    listed = source if isinstance(source, list) else [source] if source else []
    return ", ".join(Path(str(each)).name if Path(str(each)).is_absolute() else str(each) for each in listed)


def _and(*parts: Any) -> str:
    return ", ".join(str(part) for part in parts if part)


def _span(values: Any) -> str:
    numbers = [value for value in values or [] if isinstance(value, (int, float))]
    return f"{numbers[0]:.4f} at first, {numbers[-1]:.4f} at last" if len(numbers) > 1 else ""


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
