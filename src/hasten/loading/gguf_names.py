"""Where a GGUF's tensors are in a checkpoint, one short table per architecture that is converted here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from hasten.loading.gguf_experts import Experts
from hasten.loading.gguf_file import GgufFile

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
_ATTENTION = {name: own for name, own in _BASE.items() if not name.startswith("ffn_") or name == "ffn_norm"}
_ROUTER = {"ffn_gate_inp": "mlp.gate"}
_PARTS = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
_SHARED = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    **{f"ffn_{part}_shexp": f"mlp.shared_expert.{own}" for part, own in _PARTS.items()},
}
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
    experts: Experts | None = None
    """Experts in place of the MLP."""
    single_rows: tuple[str, ...] = ()
    """Names inside a layer of matrices of one row, which are vectors in the file."""
    ignored: tuple[str, ...] = field(
        default=("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
    )
    """Tensors that the configuration has taken in."""


FORMS: Mapping[str, Form] = MappingProxyType(
    {
        "llama": Form(model_type="llama", block=_BASE, permuted=True),
        "qwen2": Form(model_type="qwen2", block=_BASE),
        "qwen3": Form(model_type="qwen3", block={**_BASE, **_HEAD_NORMS}),
        "qwen2moe": Form(
            model_type="qwen2_moe",
            block={**_ATTENTION, **_ROUTER, **_SHARED},
            experts=Experts(parts=_PARTS, normed=False, shared=True),
            single_rows=("ffn_gate_inp_shexp",),
        ),
        "qwen3moe": Form(
            model_type="qwen3_moe",
            block={**_ATTENTION, **_HEAD_NORMS, **_ROUTER},
            experts=Experts(parts=_PARTS, normed=True),
        ),
        "phi3": Form(model_type="phi3", block={**_BASE, **_FUSED}),
        "gemma3": Form(model_type="gemma3_text", block={**_BASE, **_HEAD_NORMS, **_FOUR_NORMS}, plus_one=True),
    }
)
"""By ``general.architecture``. Mistral's files say llama: the arithmetic is the same."""
_MIXTRAL = Form(
    model_type="mixtral",
    block={**_ATTENTION, "ffn_gate_inp": "block_sparse_moe.gate"},
    permuted=True,
    experts=Experts(module="block_sparse_moe", parts={"gate": "w1", "up": "w3", "down": "w2"}, normed=True),
)


def form_of(file: GgufFile) -> Form | None:
    """How a file's architecture lies in it: Mixtral's files say llama, too, and how many experts there are.

    Returns:
        None where there is no table of it here.
    """
    if file.arch == "llama" and file.own("expert_count"):
        return _MIXTRAL
    return FORMS.get(file.arch)


def form_for(model_type: str, arch: str) -> Form | None:
    """How a model's tensors lie in a GGUF, by transformers' name of it; Mistral has its architecture's.

    Returns:
        None where there is no table of it here.
    """
    if model_type == _MIXTRAL.model_type:
        return _MIXTRAL
    return FORMS.get(arch)


def checkpoint_name(name: str, form: Form) -> str | None:
    """A tensor's name in the checkpoint; None: it has no place there."""
    stem, _, kind = name.rpartition(".")
    if stem in _OUTSIDE and kind in ("weight", "bias"):
        return f"{_OUTSIDE[stem]}.{kind}"
    found = _BLOCK.match(name)
    if found is None or found[2] not in form.block:
        return None
    return f"model.layers.{found[1]}.{form.block[found[2]]}.{found[3]}"
