"""An adapter's GGUF file, put back under PEFT's names and in PEFT's order, against the adapter's own factors.

Names are the loader's, rows of queries and keys go back from pairs to halves, and the scale is what llama.cpp makes of
the file: alpha over a matrix's rank. A must be what the adapter has; of B its product with the scale, which is rounded
where the file moves a factor into B: the factor, the product and alpha once each, and this comparison's own.

Shapes: R the rank, I inputs and O outputs of a weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader

from hasten.export.hf.adapter_file import AdapterFile
from hasten.export.verify.checks import Check
from hasten.families.base import family_of
from hasten.loading.gguf_names import Form, checkpoint_name, form_for

TARGET, _WHAT = "gguf-lora", "weights"
_STEP = 4 * 2.0**-24
_ENDS = (".lora_a", ".lora_b")


def compare_adapter(file: Path, adapter: Path, config: Mapping[str, Any]) -> Check:
    """Every matrix of a written adapter.

    Args:
        file: as `hasten.export.gguf.lora` writes it, in float32.
        adapter: the folder that it was made of.
        config: the base's.
    """
    reader = GGUFReader(file)
    said = {key: field.contents() for key, field in reader.fields.items()}
    model_type = str(config.get("model_type", ""))
    family = family_of(model_type).gguf
    arch = None if family is None else family.arch
    for key, right in (("general.type", "adapter"), ("adapter.type", "lora"), ("general.architecture", arch)):
        if said.get(key) != right:
            return _wrong(f"{key} is {said.get(key)!r} instead of {right!r}")
    form = None if arch is None else form_for(model_type, arch)
    if form is None:
        return Check(TARGET, _WHAT, "skipped", f"names of {arch} are written, but not read here")
    alpha = said.get("adapter.lora.alpha")
    if not isinstance(alpha, float) or not np.isfinite(alpha):
        return _wrong(f"adapter.lora.alpha is {alpha!r}")
    found: dict[str, dict[str, np.ndarray]] = {}
    for tensor in reader.tensors:
        stem, end = tensor.name[:-7], tensor.name[-7:]
        name = checkpoint_name(stem, form) if end in _ENDS else None
        if name is None:
            return _wrong(f"'{tensor.name}' is no matrix of a weight")
        found.setdefault(name.removesuffix(".weight"), {})[end] = np.asarray(tensor.data)
    return _compared(found, AdapterFile(adapter), alpha, form, config)


def _compared(
    found: Mapping[str, Mapping[str, np.ndarray]],
    own: AdapterFile,
    alpha: float,
    form: Form,
    config: Mapping[str, Any],
) -> Check:
    wanted = {pair.module: pair for pair in own.factors}
    if odd := sorted(wanted.keys() ^ found.keys()):
        return _wrong(f"'{odd[0]}' is {'missing' if odd[0] in wanted else 'not of the adapter'}")
    rounded = 0
    for module, pair in wanted.items():
        a_RI, b_OR = (own.read(name).float().numpy().astype(np.float64) for name in (pair.a, pair.b))
        matrices = found[module]
        shapes = [matrices[end].shape if end in matrices else None for end in _ENDS]
        if shapes != [a_RI.shape, b_OR.shape]:
            return _wrong(f"'{module}' has matrices of {shapes} instead of {[a_RI.shape, b_OR.shape]}")
        got_a, got_b = (matrices[end].astype(np.float64) for end in _ENDS)
        got_b = _in_halves(got_b, _heads(module, form, config))
        rank = len(a_RI)
        scaled, meant = got_b * (alpha / rank), b_OR * own.scale(module, rank)
        if not np.array_equal(got_a, a_RI):
            return _wrong(f"A of '{module}' has {int((got_a != a_RI).sum())} other values of {a_RI.size}")
        if not np.array_equal(scaled, meant):
            near = np.abs(scaled - meant) <= _STEP * np.abs(meant) + alpha / rank * 2.0**-150
            if not near.all():
                return _wrong(f"B of '{module}', scaled, has {int((~near).sum())} other values of {b_OR.size}")
            rounded += 1
    facts = f"{2 * len(wanted)} matrices of rank {_ranks(own)}, alpha {alpha:g}"
    if rounded:
        return Check(TARGET, _WHAT, "within", f"{facts}; {rounded} have a factor of their own in B, rounded once")
    return Check(TARGET, _WHAT, "equal", facts)


def _heads(module: str, form: Form, config: Mapping[str, Any]) -> int:
    """Whose rows lie in pairs; 0: rows are in order."""
    if not form.permuted or not module.endswith(("q_proj", "k_proj")):
        return 0
    heads = int(config["num_attention_heads"])
    return heads if module.endswith("q_proj") else int(config.get("num_key_value_heads") or heads)


def _in_halves(b_OR: np.ndarray, heads: int) -> np.ndarray:
    if not heads:
        return b_OR
    per_head = b_OR.reshape(heads, -1, b_OR.shape[1])
    return np.concatenate((per_head[:, 0::2], per_head[:, 1::2]), axis=1).reshape(b_OR.shape)


def _ranks(own: AdapterFile) -> str:
    ranks = sorted({own.shapes[pair.a][0] for pair in own.factors})
    return str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"


def _wrong(said: str) -> Check:
    return Check(TARGET, _WHAT, "wrong", said)
