"""What a GGUF file says of its model: name and origin, sizes, positions, and the tokenizer.

Keys and values are those of llama.cpp's converter, by the names and tables of the `gguf` package. Where this differs
on purpose, `DIFFERENCES` says so and why; the tests compare everything else.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import gguf
import yaml
from gguf import GGUFType, GGUFValue, GGUFValueType, GGUFWriter, LlamaFileType

from hasten.errors import ConfigError, ModelError
from hasten.export.gguf import vocabulary
from hasten.export.gguf.encoders import Type
from hasten.export.gguf.mixes import BASE, SHORT
from hasten.export.gguf.rope import Rope, long_attention
from hasten.export.gguf.source import Source
from hasten.export.gguf.vocabulary import Vocabulary
from hasten.loading.source import read_json

Value = str | bool | int | float | Sequence[str]

DIFFERENCES: Mapping[str, str] = {
    "llama.context_length": "of Mistral's first models, the sliding window: llama.cpp has none there, and would look"
    " further back than the model ever did",
    "tokenizer.ggml.add_bos_token": "always said: what llama.cpp assumes without it depends on how text is cut; and as"
    " tokenizer.json does it: transformers does not look at tokenizer_config.json for it",
    "tokenizer.ggml.add_eos_token": "as tokenizer.json does it, whatever tokenizer_config.json says",
    "tokenizer.ggml.add_space_prefix": "always said of SentencePiece's kind: llama.cpp assumes a blank, Gemma has none",
    "tokenizer.ggml.eot_token_id": "said where answers also end in a token that llama.cpp does not know by its text",
    "tokenizer.ggml.pre": "named by how text is cut: where llama.cpp treats names alike, one stands for all",
    "tokenizer.ggml.scores": "of SentencePiece's kind, places in the order of merging: tokenizer.json has no other",
    "general.name": "by it llama.cpp decides whether control tokens take the blanks behind them, as Phi-3's do",
    "tokenizer.ggml.token_type": "of SentencePiece's kind, as tokenizer.json has special tokens, whatever else does",
}
"""Keys whose values differ from llama.cpp's converter, and why."""

_KNOWN_ENDS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>",
    "<|end_of_text|>", "<eos>", "<｜end▁of▁sentence｜>",
)  # fmt: skip
"""Tokens that llama.cpp takes for the end of an answer by their text."""
_PHI_3 = re.compile(r"(?i)(phi)-?(3)")
_OF_PHI_3 = ("<unk>", "<s>", "</s>", "<|endoftext|>")
"""Tokens that a model must have for which llama.cpp knows that by its name."""
_SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


def metadata(source: Source, facts: Mapping[str, Value | None] | None = None) -> GGUFWriter:
    """Everything that all files of one model say alike.

    Args:
        source: the model.
        facts: keys to say otherwise or beyond (``general.name`` ...); None leaves one out.

    Returns:
        A writer without a file, for its `kv_data`.

    Raises:
        CapabilityError: the tokenizer has no form in GGUF.
        ModelError: tokens and rows of the embedding do not fit.
        ConfigError: a fact of a kind that cannot be said.
    """
    draft = GGUFWriter(None, source.form.arch)
    _say_origin(draft, source)
    _say_sizes(draft, source)
    _say_positions(draft, source.rope, source)
    draft.add_quantization_version(gguf.GGML_QUANT_VERSION)
    words = _say_tokens(draft, source)
    for key, value in (facts or {}).items():
        draft.kv_data[0].pop(key, None)
        if value is not None:
            draft.kv_data[0][key] = typed(key, value)
    if (name := draft.kv_data[0].get("general.name")) is not None:
        name.value = _telling_name(name.value, words)
    return draft


def file_type(name: str, kinds: Mapping[Type, int]) -> LlamaFileType:
    """``general.file_type``.

    Args:
        name: of the file's types, as in `mixes.named`; of others, the type that most values have decides.
        kinds: values by type.
    """
    name = SHORT.get(name.lower(), name.lower())
    if name == "f32":
        return LlamaFileType.ALL_F32
    if name in BASE:
        return LlamaFileType[f"MOSTLY_{name.upper()}"]
    most = max(kinds, key=lambda kind: kinds[kind])
    if most == Type.F32:
        return LlamaFileType.ALL_F32
    mixed = f"MOSTLY_{most.name}_M"
    return LlamaFileType[mixed if mixed in LlamaFileType.__members__ else f"MOSTLY_{most.name}"]


def _say_origin(draft: GGUFWriter, source: Source) -> None:
    shapes = [entry.tensor for entry in source.entries]
    experts = [prod(tensor.shape) for tensor in shapes if "_exps." in tensor.name]
    total, routed = sum(prod(tensor.shape) for tensor in shapes), sum(experts)
    count = source.experts if experts else 0
    try:
        said = gguf.Metadata.load(None, source.weights.folder, None, total)
    except yaml.YAMLError as cause:
        card = str(source.weights.folder / "README.md")
        rule = "A model card begins with its facts between two lines of '---'."
        raise ModelError(card, "its first lines are no YAML", rule, "Correct or remove it.") from cause
    said.name = said.name or source.weights.folder.name
    if said.size_label is None:
        said.size_label = gguf.size_label(total, total - routed, routed // max(count, 1), count)
    draft.add_type(GGUFType.MODEL)
    said.set_gguf_meta_model(draft)


def _say_sizes(draft: GGUFWriter, source: Source) -> None:
    config, form = source.weights.config, source.form
    draft.add_block_count(source.layers)
    context, window = int(config["max_position_embeddings"]), int(config.get("sliding_window") or 0)
    draft.add_context_length(min(context, window) if form.window == "context" and window else context)
    draft.add_embedding_length(int(config["hidden_size"]))
    draft.add_feed_forward_length(int(config["intermediate_size"]))
    draft.add_head_count(source.heads)
    draft.add_head_count_kv(source.key_value_heads)
    draft.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    if (config.get("head_dim") or form.head_width) and not form.long_factors:
        draft.add_key_length(source.head_width)
        draft.add_value_length(source.head_width)
    if form.sizes:
        draft.add_vocab_size(source.rows)
    if form.sizes or form.long_factors:
        draft.add_rope_dimension_count(source.rotated if form.long_factors else source.head_width)
    if form.window == "always" or (form.window == "config" and window):
        draft.add_sliding_window(window)
    if config.get("final_logit_softcapping"):
        draft.add_final_logit_softcapping(float(config["final_logit_softcapping"]))
    if source.experts:
        draft.add_expert_count(source.experts)
        draft.add_expert_used_count(int(config["num_experts_per_tok"]))
        if config.get("moe_intermediate_size"):
            draft.add_expert_feed_forward_length(int(config["moe_intermediate_size"]))
        if config.get("shared_expert_intermediate_size"):
            draft.add_expert_shared_feed_forward_length(int(config["shared_expert_intermediate_size"]))


def _say_positions(draft: GGUFWriter, rope: Rope, source: Source) -> None:
    if rope.base is not None:
        draft.add_rope_freq_base(float(rope.base))
    if rope.window_base is not None:
        draft.add_rope_freq_base_swa(float(rope.window_base))
    if source.form.long_factors:
        context = int(source.weights.config["max_position_embeddings"])
        original = int(rope.settings.get("original_max_position_embeddings") or context)
        draft.add_rope_scaling_orig_ctx_len(original)
        if source.made:
            draft.add_rope_scaling_attn_factors(long_attention(context, original))
        return
    if rope.kind == "linear":
        draft.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        draft.add_rope_scaling_factor(float(rope.need("factor")))
    elif rope.kind == "yarn":
        draft.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        draft.add_rope_scaling_factor(float(rope.need("factor")))
        draft.add_rope_scaling_orig_ctx_len(int(rope.need("original_max_position_embeddings")))
        for name, add in {
            "extrapolation_factor": draft.add_rope_scaling_yarn_ext_factor,
            "attention_factor": draft.add_rope_scaling_yarn_attn_factor,
            "beta_fast": draft.add_rope_scaling_yarn_beta_fast,
            "beta_slow": draft.add_rope_scaling_yarn_beta_slow,
        }.items():
            if rope.settings.get(name) is not None:
                add(float(rope.settings[name]))


def _telling_name(name: str, words: Vocabulary) -> str:
    like_phi_3 = words.takes_blanks and set(_OF_PHI_3) <= set(words.tokens)
    if like_phi_3 and not _PHI_3.search(name):
        return f"{name} (Phi-3)"
    return name if like_phi_3 else _PHI_3.sub(r"\1 \2", name)


def _say_tokens(draft: GGUFWriter, source: Source) -> Vocabulary:
    folder, rows = source.weights.folder, source.rows
    words = vocabulary.read(folder, rows, beyond=source.form.beyond)
    draft.add_tokenizer_model(words.model)
    draft.add_tokenizer_pre(words.cut)
    draft.add_token_list(words.tokens)
    if words.scores is not None:
        draft.add_token_scores(words.scores)
    draft.add_token_types(words.kinds)
    with _hushed("gguf.vocab"):
        special = gguf.SpecialVocab(folder, load_merges=False, n_vocab=rows)
    for name in _SPECIAL:
        number = source.weights.config.get(f"{name}_token_id")
        if isinstance(number, int) and 0 <= number < rows:
            special.special_token_ids.setdefault(name, number)
    special.merges = words.merges
    # Not tokenizer_config.json's switches, which `special` has: beside a tokenizer.json they do nothing.
    ids, added = special.special_token_ids, special.add_special_token
    added["bos"] = bool(words.before) and words.before[0] == ids.get("bos")
    if words.behind or "eos" in added:
        added["eos"] = bool(words.behind) and words.behind[-1] == ids.get("eos")
    special.add_to_gguf(draft, quiet=True)
    if words.blank_first is not None:
        draft.add_add_space_prefix(words.blank_first)
    other = [number for number in _ends(folder) if number != special.special_token_ids.get("eos") and number < rows]
    unknown = [number for number in other if words.tokens[number] not in _KNOWN_ENDS]
    if unknown and "eot" not in special.special_token_ids:
        draft.add_eot_token_id(unknown[0])
    return words


@contextmanager
def _hushed(name: str) -> Iterator[None]:
    """Without a logger's words: of templates for two texts, which no export has, it warns needlessly."""
    logger = logging.getLogger(name)

    def nothing(record: logging.LogRecord) -> bool:
        return False

    logger.addFilter(nothing)
    try:
        yield
    finally:
        logger.removeFilter(nothing)


def _ends(folder: Path) -> list[int]:
    """Tokens that end an answer, by generation_config.json."""
    file = folder / "generation_config.json"
    found: Any = read_json(file).get("eos_token_id") if file.is_file() else None
    return [number for number in (found if isinstance(found, list) else [found]) if isinstance(number, int)]


def typed(key: str, value: Value) -> GGUFValue:
    """A value with its type in the file.

    Raises:
        ConfigError: it has none.
    """
    if isinstance(value, bool):
        return GGUFValue(value, GGUFValueType.BOOL)
    if isinstance(value, int) and 0 <= value < 2**32:
        return GGUFValue(value, GGUFValueType.UINT32)
    if isinstance(value, float):
        return GGUFValue(value, GGUFValueType.FLOAT32)
    if isinstance(value, str):
        return GGUFValue(value, GGUFValueType.STRING)
    if isinstance(value, (list, tuple)) and value and all(isinstance(each, str) for each in value):
        return GGUFValue(list(value), GGUFValueType.ARRAY, GGUFValueType.STRING)
    rule = "A fact is a text, a number, true or false, or a list of texts."
    raise ConfigError(f"facts['{key}']", repr(value), rule, "Write it as one of them.")
