"""What a loader knows about a model that the model itself does not carry."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

ATTRIBUTE = "hasten_origin"


@dataclass
class Origin:
    """Kept as an attribute of the model, under `ATTRIBUTE`."""

    name: str
    """What was named: "demo", a folder, a file or a hub id."""
    base: str
    """Where the base weights came from."""
    tokenizer: Any = None
    """The tokenizer that was returned with the model."""
    full_finetuning: bool = False
    """Whether every weight is trained."""
    compute: str = "bf16"
    """What products are made in: ``"bf16"``, which stands for 16 bits, or ``"fp8"``."""
    use_cache: bool | None = None
    """`config.use_cache` before a trainer turned it off."""
    adapter_arguments: dict[str, Any] = field(default_factory=dict)
    """The arguments `get_peft_model` was called with."""


def origin_of(model: Any) -> Origin | None:
    """The origin of a model that came from hasten's loader, or None."""
    found = vars(model).get(ATTRIBUTE)
    if found is None and hasattr(model, "get_base_model"):
        found = vars(model.get_base_model()).get(ATTRIBUTE)
    return found if isinstance(found, Origin) else None


def set_origin(model: Any, origin: Origin) -> None:
    """Remember where a model came from."""
    setattr(model, ATTRIBUTE, origin)
