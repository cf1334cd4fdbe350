"""The settings of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hasten.schema import option


@dataclass(kw_only=True)
class ModelSettings:
    """Which model, and how its frozen weights are kept."""

    name: str = option(
        "demo", "'demo', a folder, an adapter folder, a .gguf file, ollama:NAME, or a hub id such as org/name"
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = option("auto", "type of frozen weights and activations")
    load_in_4bit: bool = option(False, "keep frozen weights as 4-bit NF4 (QLoRA); needs bitsandbytes")
    load_in_8bit: bool = option(False, "keep them as 8-bit whole numbers, one scale per output; needs bitsandbytes")
    load_in_fp8: bool = option(False, "keep them as 8-bit floats, one scale per output")
    load_in_16bit: bool = option(False, "read weights that are published in 8-bit floats into 16 bits")
    compute: Literal["bf16", "fp8"] = option(
        "bf16", "products of frozen weights: in the activations' type, or in 8-bit floats (faster where the card can)"
    )
    revision: str | None = option(None, "branch, tag or commit of a hub repository")
    trust_remote_code: bool = option(False, "run Python code from the model's own repository")
    use_safetensors: bool = option(True, "refuse pickle weights, which can run code when loaded")
