"""What an adapter learnt since it began, as a plain adapter of twice the rank.

s (B A - B0 A0)  =  s [B, -B0] [A; A0]
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def plain_state(state: Mapping[str, Any], began: Mapping[str, Any]) -> dict[str, Any]:
    """The weights of the plain adapter.

    Args:
        state: peft's names -> tensors, as they are now.
        began: the factors among them, as they were.
    """
    import torch

    made = {}
    for name, part in state.items():
        value = part.detach().cpu()
        if name in began:
            before = began[name].to(value.dtype)
            value = torch.cat((value, before), 0) if "lora_A" in name else torch.cat((value, -before), 1)
        made[name] = value.contiguous().clone()  # tied ones are written twice
    return made


def plain_config(config: Any) -> Any:
    """The configuration of the plain adapter: the same scale at twice the rank."""
    made = copy.deepcopy(config)
    factor = 2**0.5 if config.use_rslora else 2
    made.r = 2 * config.r
    made.lora_alpha = factor * config.lora_alpha
    made.rank_pattern = {name: 2 * rank for name, rank in config.rank_pattern.items()}
    made.alpha_pattern = {name: factor * alpha for name, alpha in config.alpha_pattern.items()}
    made.init_lora_weights = True
    made.inference_mode = True
    return made


def write_plain(state: Mapping[str, Any], began: Mapping[str, Any], config: Any, folder: Path) -> None:
    """Write the plain adapter into a folder that is there; weights appear whole or not at all.

    Args:
        state: as for `plain_state`.
        began: as for `plain_state`.
        config: of the adapter as it is.
        folder: where to.
    """
    write_whole(plain_state(state, began), folder / "adapter_model.safetensors", format="pt")
    plain_config(config).save_pretrained(str(folder))


def write_whole(state: dict[str, Any], file: Path, **metadata: str) -> None:
    """Write a safetensors file, whole or not at all; with more than one entry of metadata its bytes may vary."""
    from safetensors.torch import save_file

    temporary = file.with_name(f".{file.name}.tmp")
    try:
        save_file(state, str(temporary), metadata)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
