"""Where a GGUF's tensors are in a checkpoint, one short table per architecture that is converted here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

_BLOCK = re.compile(r"^blk\.(\d+)\.(.+)\.(weight|bias)$")
_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BASE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_FUSED = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
_FOUR_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


@dataclass(frozen=True, kw_only=True)
class Form:
    """How an architecture lies in a GGUF."""

    model_type: str
    """transformers' name of it."""
    block: Mapping[str, str]
    """Names inside a decoder layer: the file's -> the checkpoint's."""
    permuted: bool = False
    """Rows of queries and keys lie in pairs, and belong in halves."""
    plus_one: bool = False
    """Norm weights are stored plus one."""
    ignored: tuple[str, ...] = field(
        default=("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
    )
    """Tensors that the configuration has taken in."""


FORMS: Mapping[str, Form] = MappingProxyType(
    {
        "llama": Form(model_type="llama", block=_BASE, permuted=True),
        "qwen2": Form(model_type="qwen2", block=_BASE),
        "qwen3": Form(model_type="qwen3", block={**_BASE, **_HEAD_NORMS}),
        "phi3": Form(model_type="phi3", block={**_BASE, **_FUSED}),
        "gemma3": Form(model_type="gemma3_text", block={**_BASE, **_HEAD_NORMS, **_FOUR_NORMS}, plus_one=True),
    }
)
"""By ``general.architecture``. Mistral's files say llama: the arithmetic is the same."""


def checkpoint_name(name: str, form: Form) -> str | None:
    """A tensor's name in the checkpoint; None: it has no place there."""
    stem, _, kind = name.rpartition(".")
    if stem in _OUTSIDE and kind in ("weight", "bias"):
        return f"{_OUTSIDE[stem]}.{kind}"
    found = _BLOCK.match(name)
    if found is None or found[2] not in form.block:
        return None
    return f"model.layers.{found[1]}.{form.block[found[2]]}.{found[3]}"
