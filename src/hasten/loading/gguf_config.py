"""A GGUF's metadata as a transformers configuration.

What a file does not say is what llama.cpp takes in its place, and a field that would change the arithmetic in a way
that the configuration cannot express is an error, never ignored.
"""

from __future__ import annotations

from typing import Any

from hasten.errors import ModelError
from hasten.loading.gguf_experts import fields_of
from hasten.loading.gguf_file import GgufFile
from hasten.loading.gguf_names import Form
from hasten.loading.gguf_numbers import plain
from hasten.loading.gguf_rope import rope_parameters, window_base

_OTHER_ARITHMETIC = (
    "attention.scale",
    "attention.clamp_kqv",
    "attention.max_alibi_bias",
    "embedding_scale",
    "residual_scale",
    "logit_scale",
    "final_logit_softcapping",
    "attn_logit_softcapping",
    "pooling_type",
)
_TOKENS = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}
_EPSILON = "attention.layer_norm_rms_epsilon"
_GEMMA_EPSILON = 1e-6
"""Ollama's own converter does not always say it."""
_GEMMA_27B_LAYERS = 62


def configuration(file: GgufFile, form: Form) -> Any:
    """The model's configuration, a `PreTrainedConfig`.

    Args:
        file: the model.
        form: its architecture.

    Raises:
        ModelError: a field is missing, or says what the configuration cannot.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    if form.model_type not in CONFIG_MAPPING:
        raise ModelError(
            str(file.path),
            f"architecture '{file.arch}'",
            "The installed transformers does not know it.",
            "Upgrade transformers.",
        )
    _require_plain(file, form)
    fields = _fields(file, form)
    return AutoConfig.for_model(form.model_type, **fields)


def tokens_of(file: GgufFile) -> int:
    """Rows of the embedding, one per token.

    Raises:
        ModelError: there is no embedding, or the vocabulary has another size.
    """
    if "token_embd.weight" not in file.tensors:
        raise ModelError(str(file.path), "no tensor 'token_embd.weight'", "Every model has it.", "Download it again.")
    rows = int(file.tensors["token_embd.weight"].shape[-1])
    stated = {"tokens": len(file.fields.get("tokenizer.ggml.tokens") or ()), "vocab_size": file.own("vocab_size", rows)}
    for what, number in stated.items():
        if number != rows:
            raise ModelError(
                str(file.path),
                f"{number} {'tokens' if what == 'tokens' else 'as vocab_size'}, but {rows} rows of the embedding",
                "A model has one row for every token.",
                "Convert it again; unused rows get tokens of their own.",
            )
    return rows


def _require_plain(file: GgufFile, form: Form) -> None:
    found = [key for key in _OTHER_ARITHMETIC if file.own(key)]
    if form.experts is None and file.own("expert_count"):
        found.append("expert_count")
    if file.own("attention.causal") is False:
        found.append("attention.causal")
    lists = [
        name for name, value in file.fields.items() if name.startswith(f"{file.arch}.") and isinstance(value, list)
    ]
    if found or lists:
        what = found[0] if found else lists[0].removeprefix(f"{file.arch}.")
        raise ModelError(
            str(file.path),
            f"{file.arch}.{what} = {file.own(what)!r:.60}",
            f"A {file.arch} model is read without it; ignoring it would change the model.",
            "Use the model's Hugging Face folder.",
        )


def _fields(file: GgufFile, form: Form) -> dict[str, Any]:
    heads, hidden = int(file.need("attention.head_count")), int(file.need("embedding_length"))
    width = int(file.own("attention.key_length") or hidden // heads)
    rotated = int(file.own("rope.dimension_count") or width)
    if file.own("attention.value_length", width) != width:
        raise _odd(file, "attention.value_length", f"Heads of keys have {width} values; both must be alike.")
    if rotated != width and form.model_type != "phi3":
        raise _odd(file, "rope.dimension_count", f"Heads have {width} values, and all of them must be rotated.")
    epsilon = file.own(_EPSILON, _GEMMA_EPSILON) if file.arch == "gemma3" else file.need(_EPSILON)
    fields: dict[str, Any] = {
        "vocab_size": tokens_of(file),
        "hidden_size": hidden,
        "intermediate_size": int(file.need("feed_forward_length")),
        "num_hidden_layers": int(file.need("block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(file.own("attention.head_count_kv") or heads),
        "max_position_embeddings": int(file.need("context_length")),
        "rms_norm_eps": plain(epsilon),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_parameters": rope_parameters(file, rotated),
    }
    # Classes have begin and end tokens of their own where none are given.
    fields |= {ours: file.fields.get(theirs) for ours, theirs in _TOKENS.items()}
    if form.model_type != "phi3":
        fields["head_dim"] = width
    elif width != hidden // heads:
        raise _odd(file, "attention.key_length", f"Phi-3 splits {hidden} values over {heads} heads.")
    if form.model_type == "mixtral" and file.own("attention.key_length") is None:
        fields.pop("head_dim")  # as published configurations: it follows from the others
    if form.experts is not None:
        fields |= _experts(fields_of(file, form.experts), form)
    return fields | _ADDED.get(form.model_type, _nothing)(file, fields)


def _experts(said: dict[str, int], form: Form) -> dict[str, Any]:
    if form.model_type == "mixtral":  # an expert is as wide as the MLP that it is in place of
        return {"num_local_experts": said["count"], "num_experts_per_tok": said["used"]}
    assert form.experts is not None, "asked of forms with experts"
    fields = {
        "num_experts": said["count"],
        "num_experts_per_tok": said["used"],
        "moe_intermediate_size": said["width"],
        "norm_topk_prob": form.experts.normed,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
    return {**fields, "shared_expert_intermediate_size": said["shared_width"]} if form.experts.shared else fields


def _nothing(file: GgufFile, fields: dict[str, Any]) -> dict[str, Any]:
    return {}


def _llama(file: GgufFile, fields: dict[str, Any]) -> dict[str, Any]:
    return {"attention_bias": "blk.0.attn_q.bias" in file.tensors, "mlp_bias": "blk.0.ffn_up.bias" in file.tensors}


def _qwen2(file: GgufFile, fields: dict[str, Any]) -> dict[str, Any]:
    fields.pop("head_dim")  # always hidden size / heads; a configuration of its own would be a second truth
    if (
        file.own("attention.key_length")
        and file.need("attention.key_length") * fields["num_attention_heads"] != fields["hidden_size"]
    ):
        raise _odd(file, "attention.key_length", "Qwen2 splits the hidden size over its heads.")
    return {}


def _qwen2_moe(file: GgufFile, fields: dict[str, Any]) -> dict[str, Any]:
    return {**_qwen2(file, fields), "qkv_bias": "blk.0.attn_q.bias" in file.tensors}


def _qwen3(file: GgufFile, fields: dict[str, Any]) -> dict[str, Any]:
    return {"attention_bias": "blk.0.attn_q.bias" in file.tensors}


def _phi3(file: GgufFile, fields: dict[str, Any]) -> dict[str, Any]:
    width = fields["hidden_size"] // fields["num_attention_heads"]
    rotated = int(file.own("rope.dimension_count") or width)
    fields["rope_parameters"]["partial_rotary_factor"] = rotated / width
    return {
        "sliding_window": int(file.own("attention.sliding_window") or 0) or None,  # 0: Phi-4 has none
        "original_max_position_embeddings": int(
            file.own("rope.scaling.original_context_length") or fields["max_position_embeddings"]
        ),
    }


def _gemma3(file: GgufFile, fields: dict[str, Any]) -> dict[str, Any]:
    local = {"rope_type": "default", "rope_theta": window_base(file)}
    fields["rope_parameters"] = {"full_attention": fields["rope_parameters"], "sliding_attention": local}
    added: dict[str, Any] = {"query_pre_attn_scalar": fields["head_dim"]}
    if fields["num_hidden_layers"] == _GEMMA_27B_LAYERS:  # the one whose scale is not that of its heads
        added["query_pre_attn_scalar"] = fields["hidden_size"] // fields["num_attention_heads"]
    window = file.own("attention.sliding_window")
    if window:
        added["sliding_window"] = int(window)
    else:
        added["layer_types"] = ["full_attention"] * fields["num_hidden_layers"]
    return added


_ADDED = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen2_moe": _qwen2_moe,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3,
    "phi3": _phi3,
    "gemma3_text": _gemma3,
}


def _odd(file: GgufFile, key: str, rule: str) -> ModelError:
    return ModelError(
        str(file.path), f"{file.arch}.{key} = {file.own(key)}", rule, "Use the model's Hugging Face folder."
    )
