"""Rotary embeddings: from what a GGUF says of them to a configuration's ``rope_parameters``.

Linear and YaRN scaling are fields. Llama 3's scaling is not: converters write its result, one factor per rotated pair
(``rope_freqs.weight``), so its four numbers are found again and proved by computing the factors from them. Phi-3's
long-context factors are tensors as they are.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hasten.errors import ModelError
from hasten.loading.gguf_fields import POSITIONS
from hasten.loading.gguf_file import GgufFile
from hasten.loading.gguf_numbers import plain

FREQUENCIES = "rope_freqs.weight"
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
_LLAMA3 = ((8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192), (16.0, 1.0, 1.0, 8192))
"""Published settings: factor, low and high frequency factor, original context."""
_BASES = {"gemma3": (("rope.freq_base", "rope.global.freq_base"), 1e6)}
"""Fields of the base by architecture, the first that is there counts, and what it is where none is. Gemma's second one
is written by Ollama's own converter."""
_USUAL_BASE = (("rope.freq_base",), 1e4)
_WINDOW_BASE = (("rope.freq_base_swa", "rope.local.freq_base"), 1e4)
_UNUSUAL = {
    "rope.scaling.attn_factor": (1,),
    "rope.scaling.yarn_log_multiplier": (0,),
    "rope.scaling.alpha": (0,),
}
"""Fields of scaling that are read of LongRoPE only, or not at all, and the values that change nothing."""
_YARN = {
    "yarn_ext_factor": "extrapolation_factor",
    "yarn_attn_factor": "attention_factor",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}


def rope_parameters(file: GgufFile, rotated: int) -> dict[str, Any]:
    """What the configuration says of rotary embeddings.

    Args:
        file: the model.
        rotated: values of a head that are rotated.

    Raises:
        ModelError: a kind of scaling that is not known, or factors that no known rule gives.
    """
    found: dict[str, Any] = {"rope_type": "default", "rope_theta": _base(file, _BASES.get(file.arch, _USUAL_BASE))}
    if FREQUENCIES in file.tensors:
        _require_no_more(file)
        return found | _llama3(file, found["rope_theta"], rotated)
    if LONG in file.tensors or SHORT in file.tensors:
        return found | _long(file)
    _require_no_more(file)
    factor = plain(file.number("rope.scaling.factor", file.number("rope.scale_linear", 0.0)))
    kind = file.own("rope.scaling.type") or ("linear" if factor else "none")  # as llama.cpp takes it
    if kind == "none":
        return found
    if kind == "longrope":
        raise ModelError(
            str(file.path),
            f"RoPE scaling 'longrope' without '{LONG}' and '{SHORT}'",
            "Its factors are tensors of the file, and nothing else says them.",
            "Convert it again with a current converter, or use the model's Hugging Face folder.",
        )
    if file.arch == "phi3":
        raise ModelError(
            str(file.path),
            f"RoPE scaling '{kind}'",
            "Phi-3 has none, or factors for long contexts (LongRoPE).",
            "Use the model's Hugging Face folder.",
        )
    if kind not in ("linear", "yarn") or factor <= 0:
        raise ModelError(
            str(file.path),
            f"RoPE scaling '{kind}' with factor {factor}",
            "Linear and YaRN scaling with a factor are read.",
            "Use the model's Hugging Face folder.",
        )
    found |= {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        found["original_max_position_embeddings"] = _original(file)
        for theirs, ours in _YARN.items():
            if file.own(f"rope.scaling.{theirs}") is not None:
                found[ours] = plain(file.number(f"rope.scaling.{theirs}", positive="beta" in theirs))
    return found


def _require_no_more(file: GgufFile) -> None:
    """No factor of attention, or of other kinds of scaling, that the configuration has no place for."""
    for key, usual in _UNUSUAL.items():
        value = file.own(key)
        if value is not None and value not in usual:
            raise ModelError(
                str(file.path),
                f"{file.arch}.{key} = {value!r:.60}",
                f"A {file.arch} model is read without it; ignoring it would change the model.",
                "Use the model's Hugging Face folder.",
            )


def window_base(file: GgufFile) -> float:
    """The base of layers with a sliding window, of architectures where they have their own."""
    return _base(file, _WINDOW_BASE)


def llama3_factors(theta: float, rotated: int, scaling: tuple[float, float, float, float]) -> np.ndarray:
    """Llama 3's factor of every rotated pair, float32 ``[rotated / 2]``.

    A frequency whose wave is longer than ``original / low`` is divided by the factor, one shorter than
    ``original / high`` is left alone, and one between is divided by ``1 / ((1 - s) / factor + s)``, where s goes
    linearly with the frequency from 0 to 1.
    """
    factor, low, high, original = scaling
    steps = np.arange(0, rotated, 2, dtype=np.float32) / np.float32(rotated)
    waves = 2 * math.pi * np.float32(theta) ** steps
    if high == low:
        return np.where(waves > original / low, factor, 1.0).astype(np.float32)
    s = (original / waves - low) / (high - low)
    between = 1 / ((1 - s) / factor + s)
    return np.where(
        waves < original / high, 1.0, np.where(waves > original / low, factor, between)
    ).astype(np.float32)  # fmt: skip


def _base(file: GgufFile, wanted: tuple[tuple[str, ...], float]) -> float:
    fields, otherwise = wanted
    said = next((name for name in fields if file.own(name) is not None), None)
    return plain(otherwise if said is None else file.number(said, positive=True))


def _llama3(file: GgufFile, theta: float, rotated: int) -> dict[str, Any]:
    factors = np.array(file.tensors[FREQUENCIES].data, dtype=np.float32).reshape(-1)
    if len(factors) == rotated // 2 and np.isfinite(factors).all() and (factors > 0).all():
        if np.all(factors == 1):
            return {}
        for scaling in (*_LLAMA3, *_solved(factors, theta, rotated)):
            if np.allclose(llama3_factors(theta, rotated, scaling), factors, rtol=1e-5, atol=0):
                factor, low, high, original = scaling
                return {
                    "rope_type": "llama3",
                    "factor": factor,
                    "low_freq_factor": low,
                    "high_freq_factor": high,
                    "original_max_position_embeddings": int(original),
                }
    raise ModelError(
        str(file.path),
        f"{len(factors)} RoPE factors ('{FREQUENCIES}') between {min(factors, default=0):g} and "
        f"{max(factors, default=0):g}",
        "Factors as Llama 3's scaling gives them are read.",
        "Use the model's Hugging Face folder.",
    )


def _solved(factors: np.ndarray, theta: float, rotated: int) -> list[tuple[float, float, float, float]]:
    """Settings that would give these factors, from two of those between: s is linear in the frequency.

    Only the ratios of low, high and original show in the factors; low is taken as 1, as everywhere.
    """
    factor = float(factors.max())
    between = np.flatnonzero((factors > 1 + 1e-6) & (factors < factor * (1 - 1e-6)))
    if len(between) < 2:
        return []
    waves = 2 * math.pi * float(theta) ** (2 * between / rotated)
    s = (1 / factors[between].astype(np.float64) - 1 / factor) / (1 - 1 / factor)
    first, last = 0, -1
    slope = (s[first] - s[last]) / (1 / waves[first] - 1 / waves[last])
    offset = slope / waves[first] - s[first]
    if offset <= 0:
        return []
    original = round(slope / offset)
    high = 1 + 1 / offset
    # Round numbers first: nobody publishes others.
    return [(f, 1.0, h, original) for f in (round(factor, 2), plain(factor)) for h in (round(high, 2), high)]


def _long(file: GgufFile) -> dict[str, Any]:
    if not {LONG, SHORT} <= file.tensors.keys():
        raise ModelError(
            str(file.path), f"only one of '{LONG}' and '{SHORT}'", "A model has both.", "Download it again."
        )
    found: dict[str, Any] = {"rope_type": "longrope"}
    for name, key in ((LONG, "long_factor"), (SHORT, "short_factor")):
        values = np.array(file.tensors[name].data, dtype=np.float32).reshape(-1)
        found[key] = [plain(float(value)) for value in values]
    original = _original(file)
    found["original_max_position_embeddings"] = original
    if file.own("rope.scaling.attn_factor") is not None:
        stated = file.number("rope.scaling.attn_factor", positive=True)
        if not math.isclose(stated, _attention(file, original), rel_tol=1e-5):
            found["attention_factor"] = plain(stated)
    return found


def _original(file: GgufFile) -> int:
    """Of one position there is no logarithm to divide by."""
    return file.size("rope.scaling.original_context_length", least=2, most=POSITIONS)


def _attention(file: GgufFile, original: int) -> float:
    """The factor of attention that longrope has when none is stated."""
    times = file.size("context_length", most=POSITIONS) / original
    return math.sqrt(1 + math.log(times) / math.log(original)) if times > 1 else 1.0
