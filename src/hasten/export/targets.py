"""What a model can be exported to, as people name it: ``hf``, ``gguf:q4_k_m,q8_0``, ``ollama:my-model``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hasten.errors import ConfigError, did_you_mean
from hasten.export.gguf.dynamic import NAME as DYNAMIC
from hasten.export.gguf.mixes import named
from hasten.export.ollama.create import require_name

Kind = Literal["hf", "fp8", "lora", "gguf", "gguf-lora", "ollama", "vllm", "vllm-lora"]
KINDS: dict[Kind, str] = {
    "hf": "a merged folder for transformers and vLLM; hf:float32, hf:float16, hf:bfloat16",
    "fp8": "the same in 8-bit floats, as vLLM reads it (compressed-tensors)",
    "lora": "the adapter for PEFT and vLLM, on another computer",
    "gguf": "files for llama.cpp and others; gguf:q4_k_m,q8_0, or gguf:dynamic",
    "gguf-lora": "the adapter for llama.cpp",
    "ollama": "a GGUF file with its Modelfile; ollama:NAME also creates it in an Ollama that runs",
    "vllm": "as hf, checked against what vLLM takes",
    "vllm-lora": "as lora, checked against what vLLM takes",
}
DEFAULT_TYPE = "q4_k_m"
_DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Wanted:
    """Everything that is asked for."""

    hf: str | None = None
    """A dtype, ``""`` for the base's own; None: no folder."""
    fp8: bool = False
    lora: bool = False
    gguf: tuple[str, ...] = ()
    """Types, in the order they were named."""
    gguf_lora: bool = False
    ollama: str | None = None
    """The model's name there, ``""`` for none; None: no Modelfile."""
    vllm: bool = False
    vllm_lora: bool = False


def parse(texts: Sequence[str]) -> Wanted:
    """What ``--to`` says.

    Raises:
        ConfigError: an unknown target, type, dtype or name; or nothing.
    """
    if not texts:
        rule = f"Targets: {', '.join(KINDS)}."
        raise ConfigError("--to", "nothing", rule, "For example: --to gguf:q4_k_m --to hf.")
    found: dict[str, object] = {}
    types: list[str] = []
    for text in texts:
        kind, _, detail = text.strip().partition(":")
        kind = kind.lower()
        if kind not in KINDS:
            remedy = did_you_mean(kind, KINDS, "Use 'gguf:q4_k_m' or 'hf'.")
            raise ConfigError("--to", repr(text), f"Targets: {', '.join(KINDS)}.", remedy)
        if detail and kind not in ("hf", "gguf", "ollama"):
            raise ConfigError("--to", repr(text), f"'{kind}' takes nothing after it.", f"Use '{kind}'.")
        if kind == "gguf":
            types += [named(part.strip(), DYNAMIC) for part in detail.split(",") if part.strip()] or [DEFAULT_TYPE]
        elif kind == "hf":
            if detail and detail not in _DTYPES:
                remedy = did_you_mean(detail, _DTYPES, "Use 'hf'.")
                raise ConfigError("--to", repr(text), f"Dtypes: {', '.join(_DTYPES)}.", remedy)
            found["hf"] = _once(found, kind, detail)
        elif kind == "ollama":
            found["ollama"] = _once(found, kind, require_name(detail) if detail else "")
        else:
            found[kind.replace("-", "_")] = True
    if found.get("vllm"):
        found.setdefault("hf", "")
    if found.get("vllm_lora"):
        found["lora"] = True
    if "ollama" in found and not types:
        types = [DEFAULT_TYPE]
    return Wanted(gguf=tuple(dict.fromkeys(types)), **found)  # type: ignore[arg-type]


def _once(found: Mapping[str, object], kind: str, detail: str) -> str:
    """What stands behind a target that is made once: of two that differ, neither is left out in silence."""
    before = str(found.get(kind) or detail)
    if detail and before != detail:
        value, rule = f"'{kind}:{before}' and '{kind}:{detail}'", f"An export makes one '{kind}'."
        raise ConfigError("--to", value, rule, "Name one of them, and export the other into another folder.")
    return before
