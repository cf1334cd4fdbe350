"""A GGUF's metadata as a transformers configuration.

What a file does not say is what llama.cpp takes in its place, and a field that would change the arithmetic in a way
that the configuration cannot express is an error, never ignored.
"""

from __future__ import annotations

from typing import Any

from hasten.errors import ModelError
from hasten.loading.gguf_experts import fields_of
from hasten.loading.gguf_fields import POSITIONS, texts, whole
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
    from huggingface_hub.errors import StrictDataclassError
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
    try:
        return AutoConfig.for_model(form.model_type, **fields)
    except (StrictDataclassError, ValueError, TypeError) as cause:  # numbers that do not go together
        raise not_taken(file, cause) from cause


def not_taken(file: GgufFile, cause: BaseException) -> ModelError:
    """The error for a shape that transformers makes no model of; its last line says why."""
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    return ModelError(
        str(file.path),
        f"a shape that no {file.arch} model has ({lines[-1].strip()[:200]})",
        "Its metadata say what the model is made of.",
        "Convert it again with a current converter, or use the model's Hugging Face folder.",
    )


def layers_of(file: GgufFile) -> int:
    """Of how many layers the file has tensors."""
    return len({name.split(".")[1] for name in file.tensors if name.startswith("blk.")})


def tokens_of(file: GgufFile) -> int:
    """Rows of the embedding, one per token.

    Raises:
        ModelError: there is no embedding, or the vocabulary has another size.
    """
    if "token_embd.weight" not in file.tensors:
        raise ModelError(str(file.path), "no tensor 'token_embd.weight'", "Every model has it.", "Download it again.")
    rows = int(file.tensors["token_embd.weight"].shape[-1])
    tokens = texts(file.path, "tokenizer.ggml.tokens", file.fields.get("tokenizer.ggml.tokens", []))
    stated = {"tokens": len(tokens), "vocab_size": file.own("vocab_size", rows)}
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
    heads, hidden = file.size("attention.head_count"), file.size("embedding_length")
    width = file.size("attention.key_length", hidden // heads)
    rotated = file.size("rope.dimension_count", width)
    groups = file.size("attention.head_count_kv", heads)
    if width < 1:
        raise _odd(file, "attention.head_count", f"They split {hidden} values.")
    if heads % groups:
        raise _odd(file, "attention.head_count_kv", f"{heads} heads share them evenly.")
    if file.own("attention.value_length", width) != width:
        raise _odd(file, "attention.value_length", f"Heads of keys have {width} values; both must be alike.")
    if rotated != width and form.model_type != "phi3":
        raise _odd(file, "rope.dimension_count", f"Heads have {width} values, and all of them must be rotated.")
    epsilon = file.number(_EPSILON, _GEMMA_EPSILON if file.arch == "gemma3" else None, positive=True)
    fields: dict[str, Any] = {
        "vocab_size": tokens_of(file),
        "hidden_size": hidden,
        "intermediate_size": file.size("feed_forward_length"),
        "num_hidden_layers": _layers(file),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "max_position_embeddings": file.size("context_length", most=POSITIONS),
        "rms_norm_eps": plain(epsilon),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_parameters": rope_parameters(file, rotated),
    }
    # Classes have begin and end tokens of their own where none are given.
    fields |= {ours: _token(file, theirs, fields["vocab_size"]) for ours, theirs in _TOKENS.items()}
    if form.model_type != "phi3":
        fields["head_dim"] = width
    elif width != hidden // heads:
        raise _odd(file, "attention.key_length", f"Phi-3 splits {hidden} values over {heads} heads.")
    if form.model_type == "mixtral" and file.own("attention.key_length") is None:
        fields.pop("head_dim")  # as published configurations: it follows from the others
    if form.experts is not None:
        fields |= _experts(fields_of(file, form.experts), form)
    return fields | _ADDED.get(form.model_type, _nothing)(file, fields)


def _layers(file: GgufFile) -> int:
    """As many as it has tensors for: a model of each is made before the tensors are compared with it."""
    layers = file.size("block_count")
    if layers > layers_of(file):
        raise _odd(file, "block_count", f"The file has tensors of {layers_of(file)} layers.")
    return layers


def _token(file: GgufFile, name: str, rows: int) -> int | None:
    value = file.fields.get(name)
    return None if value is None else whole(file.path, name, value, most=rows - 1)


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
        and file.size("attention.key_length") * fields["num_attention_heads"] != fields["hidden_size"]
    ):
        raise _odd(file, "attention.key_length", "Qwen2 splits the hidden size over its heads.")
    return {}


def _qwen2_moe(file: GgufFile, fields: dict[str, Any]) -> dict[str, Any]:
    return {**_qwen2(file, fields), "qkv_bias": "blk.0.attn_q.bias" in file.tensors}


def _qwen3(file: GgufFile, fields: dict[str, Any]) -> dict[str, Any]:
    return {"attention_bias": "blk.0.attn_q.bias" in file.tensors}


def _phi3(file: GgufFile, fields: dict[str, Any]) -> dict[str, Any]:
    width = fields["hidden_size"] // fields["num_attention_heads"]
    rotated = file.size("rope.dimension_count", width)
    fields["rope_parameters"]["partial_rotary_factor"] = rotated / width
    return {
        "sliding_window": file.size("attention.sliding_window", 0, most=POSITIONS) or None,  # 0: Phi-4 has none
        "original_max_position_embeddings": file.size(
            "rope.scaling.original_context_length", fields["max_position_embeddings"], most=POSITIONS
        ),
    }


def _gemma3(file: GgufFile, fields: dict[str, Any]) -> dict[str, Any]:
    local = {"rope_type": "default", "rope_theta": window_base(file)}
    fields["rope_parameters"] = {"full_attention": fields["rope_parameters"], "sliding_attention": local}
    added: dict[str, Any] = {"query_pre_attn_scalar": fields["head_dim"]}
    if fields["num_hidden_layers"] == _GEMMA_27B_LAYERS:  # the one whose scale is not that of its heads
        added["query_pre_attn_scalar"] = fields["hidden_size"] // fields["num_attention_heads"]
    window = file.size("attention.sliding_window", 0, most=POSITIONS)
    if window:
        added["sliding_window"] = window
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
