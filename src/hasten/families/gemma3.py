"""Gemma 3 (text): norms whose weight is the scale minus one, also after attention and MLP, windows in five of six
layers; no fast path."""

from hasten.families.base import Family, Gguf

FAMILY = Family(
    name="Gemma 3",
    model_types=("gemma3_text",),
    gguf=Gguf(
        arch="gemma3",
        plus_one=True,
        tied=True,
        window="config",
        head_width=256,
        beyond=("<image_soft_token>",),
    ),
    tiny={
        "vocab_size": 131,
        "hidden_size": 40,
        "intermediate_size": 88,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "query_pre_attn_scalar": 12,
        "sliding_window": 11,
        "max_position_embeddings": 96,
    },
)
