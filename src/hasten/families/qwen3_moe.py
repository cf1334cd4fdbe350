"""Qwen3 with experts in place of the MLP; no fast path."""

from hasten.families.base import Family, Gguf

FAMILY = Family(
    name="Qwen3 MoE",
    model_types=("qwen3_moe",),
    lora_targets=("q_proj", "k_proj", "v_proj", "o_proj"),
    gguf=Gguf(arch="qwen3moe", granted={"norm_topk_prob": True, "use_sliding_window": False}),
    tiny={
        "vocab_size": 131,
        "hidden_size": 40,
        "intermediate_size": 88,
        "moe_intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "num_experts": 3,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "max_position_embeddings": 96,
    },
)
